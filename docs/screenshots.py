"""Makes the pictures of the playground's page, `docs/images/play-*.webp`: photo-pyramid on a photograph.

`make screenshots` runs it. It needs Chromium (Debian's package) and Playwright. The photograph is NASA's of the
astronaut Eileen Collins, in the public domain, from the wheel of scikit-image.
"""

import io
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from smalti.data import open_images
from smalti.playground.app import application
from smalti.playground.opened import Opened
from smalti.zoo import open_tokenizer

OUT = Path(__file__).parent / "images"
WINDOW = {"width": 1180, "height": 860}
SIDE = 384
"""Side of the photograph in pixels."""


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    """A place on the picture, given as fractions, in pixels of the window."""
    box = page.locator(".stage").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def look(page: Page) -> None:
    """Original and reconstruction."""
    page.locator(".zoom").select_option("4")
    page.mouse.move(*place(page, 0.42, 0.28))


def point(page: Page) -> None:
    """The tokens under a place of the face."""
    page.locator(".zoom").select_option("0")
    page.mouse.move(*place(page, 0.44, 0.25))
    page.locator(".point-table tbody tr").first.wait_for()


def scales(page: Page) -> None:
    """Nine of ten scales."""
    page.locator("figure img").nth(2).wait_for(timeout=60_000)
    page.locator(".scales-slider").press("ArrowLeft")
    page.locator("figure.empty").first.wait_for()
    page.locator("figure img").nth(2).wait_for(timeout=60_000)


def paint(page: Page) -> None:
    """A stroke of one code."""
    page.locator(".paint-size").select_option("3")
    page.locator("input[value=pick]").check()
    page.mouse.move(*place(page, 0.44, 0.25))
    page.mouse.down()
    page.mouse.up()
    page.locator("input[value=brush]").check()
    page.mouse.move(*place(page, 0.15, 0.7))
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(*place(page, 0.15 + 0.08 * step, 0.7 + 0.02 * (step % 3)))
    page.mouse.up()
    page.locator(".overlay").wait_for()


def codes(page: Page) -> None:
    """The wall, with one code found in the picture."""
    page.locator(".wall button.here").first.wait_for()
    page.locator(".wall button.here").nth(1).click()


PANELS = {"look": look, "point": point, "scales": scales, "paint": paint, "codes": codes}


def photograph() -> bytes:
    """The photograph as PNG."""
    picture = Image.fromarray(open_images("embedded:test").load(0)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    """Serve the page, use every panel, save what it looks like."""
    served = application({"photo-pyramid": Opened("photo-pyramid", open_tokenizer("photo-pyramid"))})
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(served, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport=WINDOW)
        page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}")
        path = Path(folder, "astronaut.png")
        path.write_bytes(photograph())
        page.locator(".file").set_input_files(path)
        page.locator(".about").wait_for()
        for name, use in PANELS.items():
            page.locator(f"#tab-{name}").click()
            use(page)
            page.locator(".busy").wait_for(state="hidden", timeout=60_000)
            Image.open(io.BytesIO(page.screenshot())).save(OUT / f"play-{name}.webp", quality=82, method=6)
        browser.close()
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
