"""Makes the pictures of the playground's page, `docs/images/play-*.webp`: photo-pyramid on a photograph.

`make screenshots` runs it; with names of panels it makes theirs only. It needs Chromium (Debian's package) and
Playwright. The photograph is NASA's of the astronaut Eileen Collins, in the public domain, from the wheel of
scikit-image.
"""

import io
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from smalti.data import TransformConfig, open_images
from smalti.playground.app import application
from smalti.playground.opened import Opened
from smalti.priors import Prior, TokenLayout
from smalti.tokenizers import Tokenizer
from smalti.zoo import build_prior, open_tokenizer

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


def duel(page: Page) -> None:
    """photo-pyramid and photo-f8."""
    page.locator(".duel-pictures img").nth(1).wait_for()


def dream(page: Page) -> None:
    """The bits of the finest scale, and a painted region."""
    page.locator(".dream-cut").click()
    page.locator(".dream-numbers dd").first.wait_for()
    page.mouse.move(*place(page, 0.7, 0.12))
    page.mouse.down()
    page.mouse.move(*place(page, 0.9, 0.3), steps=6)
    page.mouse.up()
    page.mouse.move(*place(page, 0.44, 0.25))


def share(page: Page) -> None:
    """The link."""
    page.locator(".share-numbers dd").first.wait_for()


PANELS = {
    "look": look, "point": point, "scales": scales, "paint": paint, "codes": codes,
    "duel": duel, "dream": dream, "share": share,
}  # fmt: skip


def small_prior(tokenizer: Tokenizer, steps: int = 150, batch_size: int = 2) -> Prior:
    """A small next-scale prior after a minute on the embedded photographs; the one on the page is not among them."""
    torch.manual_seed(0)
    photographs, rng = open_images("embedded:train"), np.random.default_rng(0)
    transform = TransformConfig(256, "random", zoom=2.0, flip=True)
    crops = [transform.apply(photographs.load(n % len(photographs)), rng) for n in range(96)]
    tokens = [tokenizer.encode(torch.stack(crops[n : n + 8])) for n in range(0, len(crops), 8)]
    layout = TokenLayout(tokenizer.vocab_size, tokens[0].grids, (256, 256), tokenizer.fingerprint)
    sequences = torch.cat([part.flatten() for part in tokens])
    prior = build_prior("next-scale-small", layout, 0, tokenizer.quantizer, depth=2, width=64, num_heads=2)
    optimizer = torch.optim.AdamW([p for p in prior.parameters() if p.requires_grad], lr=5e-4)
    for _ in range(steps):
        batch = sequences[torch.from_numpy(rng.integers(len(sequences), size=batch_size))]
        loss = prior.train().loss(batch, torch.zeros(batch_size, dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


def photograph() -> bytes:
    """The photograph as PNG."""
    picture = Image.fromarray(open_images("embedded:test").load(0)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    """Serve the page, use every panel, save what it looks like."""
    models = {name: Opened(name, open_tokenizer(name)) for name in ("photo-pyramid", "photo-f8")}
    models["photo-pyramid"].prior = small_prior(models["photo-pyramid"].tokenizer)
    served = application(models)
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
            if name not in (sys.argv[1:] or PANELS):
                continue
            page.locator(f"#tab-{name}").click()
            use(page)
            page.locator(".busy").wait_for(state="hidden", timeout=60_000)
            Image.open(io.BytesIO(page.screenshot())).save(OUT / f"play-{name}.webp", quality=82, method=6)
        browser.close()
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
