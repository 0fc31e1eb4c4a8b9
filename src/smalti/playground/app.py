"""The web application: one Gradio page of plain HTML, CSS and JavaScript, with the guard in front of it.

The page is one `gradio.HTML` component. Its files in `page/` are joined here: no build step, and no script, font or
style from another host. The browser calls one Python function, `answer` in `actions.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.playground.actions import UNLOCKED, answer
from smalti.playground.guard import Application, Guard
from smalti.playground.look import MOST_BYTES
from smalti.playground.opened import Opened
from smalti.playground.pictures import colour_table
from smalti.playground.words import words
from smalti.playground.workspace import Workspaces

PAGE = Path(__file__).parent / "page"
PANELS = ("look", "point", "scales", "paint", "codes", "duel", "dream", "share")
"""The panels in the order of their tabs; each has `page/NAME.html`, `page/NAME.js` and the text `tab_NAME`."""


def application(models: Mapping[str, Opened], guarded: bool = True) -> Application:
    """The playground as an ASGI application.

    Args:
        models: the opened tokenizers by name.
        guarded: refuse requests of other web sites, see `guard.py`.

    Raises:
        ValueError: Gradio is not installed. The message names the extra.
    """
    try:
        import gradio
        from fastapi import FastAPI
    except ImportError as error:
        raise ValueError("play: gradio is not installed; run pip install 'smalti[play]'") from error
    workspaces = Workspaces(models)

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        return answer(workspaces, message)

    with gradio.Blocks(analytics_enabled=False, title="smalti playground", fill_width=True) as page:
        gradio.HTML(
            html_template=markup(),
            css_template=_read("frame.css") + _read("panels.css"),
            js_on_load=script(list(models)),
            apply_default_css=False,
            server_functions=[ask],
        )
    font = gradio.themes.Font("system-ui"), gradio.themes.Font("sans-serif")  # none to load
    mounted = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        theme=gradio.themes.Base(font=font, font_mono=(gradio.themes.Font("monospace"),)),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    return Guard(mounted) if guarded else mounted


def markup() -> str:
    """The HTML of the page with all panels."""
    tabs = "".join(
        f'<button type="button" role="tab" id="tab-{name}" data-tab="{name}" data-word="tab_{name}" '
        f'aria-controls="panel-{name}" aria-selected="false" tabindex="-1"></button>'
        for name in PANELS
    )
    panels = "".join(
        f'<section role="tabpanel" id="panel-{name}" aria-labelledby="tab-{name}" hidden>'
        f"{_read(f'{name}.html')}</section>"
        for name in PANELS
    )
    return _read("frame.html").replace("@tabs", tabs).replace("@panels", panels)


def script(models: list[str]) -> str:
    """The JavaScript of the page: its settings, then all files in the order in which they build on each other."""
    settings = {"words": words(), "models": models, "colours": colour_table().tolist(), "mostBytes": MOST_BYTES}
    settings["unlocked"] = UNLOCKED
    files = ("frame.js", "stage.js", *(f"{name}.js" for name in PANELS), "start.js")
    text = json.dumps(settings, ensure_ascii=False)
    return "\n".join([f"const SETTINGS = {text};", *(_read(name) for name in files)])


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")
