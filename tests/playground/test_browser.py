"""The page in a browser, used as a person uses it: Debian's Chromium, driven by Playwright.

Skipped without both; `make test-browser` installs them. No request may leave this machine. The times of all actions are
printed (`-s` shows them), not asserted.
"""

import base64
import io
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data import open_images
from smalti.playground.guard import Application
from smalti.playground.opened import Opened
from smalti.quantizers import MultiScaleQuantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import open_tokenizer

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn, which comes with Gradio, is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: make test-browser installs it")
expect = playwright.expect

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECONDS = 20_000
"""Milliseconds until the page must have reacted, on a busy machine."""
expect.set_options(timeout=SECONDS)


def picture(seed: int, side: int = 64) -> bytes:
    """A smooth picture as PNG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Site:
    """The served page and a browser."""

    address: str
    browser: object
    errors: list[str] = field(default_factory=list)
    """Errors of the page's JavaScript."""
    outside: list[str] = field(default_factory=list)
    """Addresses of requests to other hosts; they are refused."""
    times: dict[str, list[float]] = field(default_factory=dict)
    """Action -> milliseconds until its answer was in the browser."""
    pages: list = field(default_factory=list)

    def page(self, width: int = 1200, height: int = 900, **context: str):
        """A new tab with the page open."""
        opened = self.browser.new_context(viewport={"width": width, "height": height}, **context)
        opened.set_default_timeout(SECONDS)
        opened.route("**/*", self._filter)
        page = opened.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: "js_on_load" in message.text and self.errors.append(message.text))
        page.goto(self.address)
        page.locator(".playground .drop").wait_for()
        self.pages.append(page)
        return page

    def _filter(self, route) -> None:
        if route.request.url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def close_pages(self) -> None:
        for page in self.pages:
            for action, milliseconds in page.evaluate("window.smaltiTimings ?? []"):
                self.times.setdefault(action, []).append(milliseconds)
            page.context.close()
        self.pages.clear()


@pytest.fixture(scope="module")
def site(build: Callable[[dict[str, Opened]], Application]) -> Iterator[Site]:
    torch.manual_seed(0)
    scales = MultiScaleQuantizer(12, 4, (1, 2, 4, 16), quantizer=VectorQuantizer(12, 4))
    models = {
        "tiny": Opened("tiny", SimpleVQVAE(12, 4, 8, num_res_blocks=0, quantizer=scales).eval()),
        "photo-f8": Opened("photo-f8", open_tokenizer("photo-f8")),
    }
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build(models), log_level="critical", timeout_graceful_shutdown=1, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        made = Site(f"http://127.0.0.1:{listener.getsockname()[1]}", browser)
        yield made
        browser.close()
    server.should_exit = True
    thread.join(timeout=20)
    listener.close()
    for action, times in sorted(made.times.items()):
        print(f"{action:16} {len(times):3} times, median {median(times):6.0f} ms, longest {max(times):6.0f} ms")


@pytest.fixture(autouse=True)
def _no_request_leaves(site: Site) -> Iterator[None]:
    yield
    site.close_pages()
    assert site.outside == []
    assert site.errors == []


def drop(page, *files: tuple[str, bytes]) -> None:
    """Drop files on the page, as the mouse does."""
    contents = [[name, base64.b64encode(data).decode()] for name, data in files]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, data] of files) {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            return transfer;
        }""",
        contents,
    )
    page.dispatch_event(".playground", "drop", {"dataTransfer": transfer})


def opened(site: Site, seed: int = 1, **context: str):
    page = site.page(**context)
    drop(page, ("a.png", picture(seed)))
    expect(page.locator(".about")).to_contain_text("a.png")
    return page


def choose(page, tab: str) -> None:
    page.locator(f"#tab-{tab}").click()


def at(page, x: float, y: float) -> tuple[float, float]:
    """A place on the picture, given as fractions, in pixels of the window."""
    box = page.locator(".stage").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def shown(page, which: str = "after") -> np.ndarray:
    """The pixels of a picture on the stage."""
    url = page.locator(f".stage .{which}").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def until(condition: Callable[[], bool], page) -> None:
    """Wait until a condition holds."""
    for _ in range(SECONDS // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail("the page did not react")


def test_a_dropped_picture_appears_under_a_divider(site: Site) -> None:
    page = opened(site)
    original = np.asarray(Image.open(io.BytesIO(picture(1))))
    assert np.array_equal(shown(page, "before"), original)
    assert shown(page).shape == original.shape
    expect(page.locator("#panel-look .numbers")).to_contain_text("PSNR")
    divider = page.locator(".divider")
    divider.press("ArrowLeft")
    expect(divider).to_have_attribute("aria-valuenow", "48")
    x, y = at(page, 0.48, 0.2)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(*at(page, 0.8, 0.2))
    page.mouse.up()
    expect(divider).to_have_attribute("aria-valuenow", "80")
    page.locator(".look-error").check()
    expect(page.locator(".overlay")).to_be_visible()
    page.locator(".zoom").select_option("1")
    page.mouse.move(*at(page, 0.5, 0.5))
    expect(page.locator(".loupe")).to_be_visible()


def test_a_bad_file_is_one_line_and_the_picture_stays(site: Site) -> None:
    page = opened(site)
    before = shown(page)
    drop(page, ("bad.png", b"no picture"))
    expect(page.locator(".message")).to_contain_text("bad.png")
    assert np.array_equal(shown(page), before)
    drop(page, ("large.png", picture(3, side=900)))
    expect(page.locator(".about")).to_contain_text("reduced from 900 × 900")
    expect(page.locator(".message")).to_be_hidden()


def test_pointing_lights_up_the_token_at_every_scale(site: Site) -> None:
    page = opened(site)
    choose(page, "point")
    page.mouse.move(*at(page, 0.9, 0.1))
    rows = page.locator(".point-table tbody tr")
    expect(rows).to_have_count(4)
    codes = [int(text) for text in rows.locator("td:nth-child(2)").all_inner_texts()]
    assert all(0 <= code < 12 for code in codes)
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".spoken")).to_contain_text("Row 2, column 14")


def test_the_slider_goes_through_the_scales(site: Site) -> None:
    page = opened(site)
    reconstruction = shown(page)
    choose(page, "scales")
    expect(page.locator(".scales-hint")).to_contain_text("4 of 4")
    expect(page.locator("figure")).to_have_count(3)
    slider = page.locator(".scales-slider")
    slider.press("Home")
    expect(page.locator(".scales-hint")).to_contain_text("1 of 4")
    expect(page.locator(".scales-numbers")).to_contain_text("1")
    slider.press("End")
    expect(page.locator(".scales-hint")).to_contain_text("4 of 4")
    assert np.array_equal(shown(page), reconstruction)


def test_the_brush_changes_pixels_and_undo_brings_them_back(site: Site) -> None:
    page = opened(site)
    before = shown(page)
    choose(page, "paint")
    page.mouse.move(*at(page, 0.7, 0.7))
    for code in ("0", "1"):  # one of them is another code than the encoder's
        page.locator(".paint-code").fill(code)
        page.locator(".paint-code").press("Enter")
        page.mouse.move(*at(page, 0.7, 0.7))
        page.mouse.down()
        page.mouse.move(*at(page, 0.8, 0.7))
        page.mouse.up()
        expect(page.locator(".busy")).to_be_hidden()
    until(lambda: not np.array_equal(shown(page), before), page)
    expect(page.locator(".overlay")).to_be_visible()
    painted = shown(page)
    page.locator(".stage").press("z")
    until(lambda: not np.array_equal(shown(page), painted), page)
    page.locator(".stage").press("y")
    until(lambda: np.array_equal(shown(page), painted), page)
    page.locator(".paint-reset").click()
    until(lambda: np.array_equal(shown(page), before), page)
    with page.expect_download() as download:
        page.locator(".paint-tokens").click()
    assert download.value.suggested_filename == "a.tokens"


def test_a_region_is_copied_to_another_picture_by_keyboard(site: Site) -> None:
    page = opened(site)
    choose(page, "paint")
    stage = page.locator(".stage")
    stage.focus()
    page.keyboard.press("ArrowRight")
    for code, key in (("0", "ArrowRight"), ("1", "ArrowLeft")):  # two neighbours that differ
        page.locator(".paint-code").fill(code)
        page.locator(".paint-code").press("Enter")
        stage.focus()
        page.keyboard.press("Enter")
        page.keyboard.press(key)
    expect(page.locator(".busy")).to_be_hidden()
    for key in ("c", "Enter", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".paint-report")).to_contain_text("tokens copied")
    drop(page, ("b.png", picture(9)))
    expect(page.locator(".about")).to_contain_text("b.png")
    before = shown(page)
    stage.focus()
    for key in ("v", "ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".paint-undo")).to_be_enabled()
    until(lambda: not np.array_equal(shown(page), before), page)


def test_a_code_of_the_wall_is_found_in_the_picture(site: Site) -> None:
    page = opened(site)
    choose(page, "codes")
    wall = page.locator(".wall button")
    expect(wall).to_have_count(12)
    page.locator(".wall button.here").first.click()
    expect(page.locator(".codes-report")).to_contain_text("× in this picture")
    page.locator(".codes-brush").click()
    expect(page.locator("#panel-paint")).to_be_visible()


def test_two_tabs_do_not_mix(site: Site) -> None:
    first, second = opened(site, seed=1), opened(site, seed=2)
    choose(first, "scales")
    choose(second, "paint")
    drop(second, ("b.png", picture(5)))
    expect(second.locator(".about")).to_contain_text("b.png")
    assert np.array_equal(shown(first, "before"), np.asarray(Image.open(io.BytesIO(picture(1)))))
    expect(first.locator(".about")).to_contain_text("a.png")


def test_the_switch_changes_all_of_the_page_at_once(site: Site) -> None:
    page = opened(site)
    page.locator(".language").click()
    for name in ("look", "point", "scales", "paint", "codes"):
        choose(page, name)
        visible = page.locator(f"#panel-{name}").inner_text()
        assert any("\u4e00" <= letter <= "\u9fff" for letter in visible), name
        assert "undefined" not in visible
    expect(page.locator("[data-word=drop]")).to_have_text("把图片拖到这里")
    assert page.locator(".playground").get_attribute("lang") == "zh-CN"
    chinese = site.page(locale="zh-CN")
    expect(chinese.locator("[data-word=drop]")).to_have_text("把图片拖到这里")


def test_a_narrow_screen_needs_no_sideways_scrolling(site: Site) -> None:
    page = opened(site, width=390, height=800)  # type: ignore[arg-type]
    for name in ("look", "point", "scales", "paint", "codes"):
        choose(page, name)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name


def test_every_control_has_a_name(site: Site) -> None:
    page = opened(site)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(".playground :is(button, input, select, [role=slider], [tabindex='0'])")]
            .filter((node) => !node.getAttribute("aria-label") && !node.textContent.trim()
                && !node.closest("label")?.textContent.trim())
            .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert all(image.get_attribute("alt") for image in page.locator(".stage img:not([hidden])").all())


def test_a_photograph_in_photo_f8(site: Site) -> None:
    photograph = Image.fromarray(open_images("embedded:test").load(0)).resize((256, 256))
    buffer = io.BytesIO()
    photograph.save(buffer, "PNG")
    page = site.page()
    page.locator(".model").select_option("photo-f8")
    page.locator(".example").click()
    expect(page.locator(".about")).to_contain_text("astronaut.png: 512 × 512")
    drop(page, ("astronaut.png", buffer.getvalue()))
    expect(page.locator("#panel-look .numbers")).to_contain_text("1024")
    for name in ("point", "scales", "paint", "codes"):
        choose(page, name)
    expect(page.locator(".wall button").first).to_be_visible()
