"""The only interface between browser and Python: the name of an action, its arguments, and the browser tab."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from smalti.playground import codes, dream, duel, look, paint, scales, share
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Workspace, Workspaces

ACTIONS: dict[str, Callable[[Workspace, dict[str, Any]], dict[str, Any]]] = {
    "look.open": share.open_dropped,
    "look.example": look.open_example,
    "look.ssim": look.similarity,
    "look.model": look.choose_model,
    "scales.show": scales.show,
    "scales.codec": scales.codec,
    "paint.write": paint.write,
    "paint.erase": paint.erase,
    "paint.copy": paint.copy,
    "paint.paste": paint.paste,
    "paint.undo": paint.undo,
    "paint.redo": paint.redo,
    "paint.tokens": paint.token_file,
    "paint.picture": paint.picture_file,
    "codes.wall": codes.wall,
    "codes.pictures": codes.pictures,
    "duel.show": duel.show,
    "dream.look": dream.look,
    "dream.fit": dream.fit,
    "dream.draw": dream.draw,
    "share.link": share.link,
    "share.open": share.open_link,
}
"""Name of an action -> function of the workspace and the arguments; its result is plain JSON data."""

UNLOCKED = ("look.ssim", "scales.codec", "codes.wall", "codes.pictures")
"""Actions that change nothing and may take long: they do not wait for each other."""


def answer(workspaces: Workspaces, message: dict[str, Any]) -> dict[str, Any]:
    """Do what a message asks: `tab`, `action`, `arguments`.

    Returns:
        The action's result with its time, `milliseconds`. After a mistake of the user: `problem`, one line in English,
        and the page's text for it, `word` with its `values`. Other errors are bugs and are raised.
    """
    start = time.perf_counter()
    action = ACTIONS.get(str(message.get("action")))
    workspace = workspaces.of(str(message.get("tab")))
    try:
        if action is None:
            raise RefusalError("refused_action", got=repr(message.get("action")), names=", ".join(ACTIONS))
        with nullcontext() if message["action"] in UNLOCKED else workspace.lock:
            result = action(workspace, message.get("arguments") or {})
    except RefusalError as error:
        return {"problem": " ".join(str(error).split()), "word": error.key, "values": error.values}
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        panel = message["action"].partition(".")[0]
        return {"problem": reason, "word": f"failed_{panel}", "values": {"reason": reason}}
    return {**result, "milliseconds": round(1000 * (time.perf_counter() - start), 1)}
