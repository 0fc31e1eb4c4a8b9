"""Duel, Dream and Share in a browser, used as a person uses them, with the helpers of `test_browser.py`."""

import copy
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playground.test_browser import (
    ARGUMENTS,
    CHROMIUM,
    Site,
    at,
    choose,
    drop,
    expect,
    opened,
    picture,
    playwright,
    shown,
    until,
    uvicorn,
)
from small_priors import awake

from smalti.formats import TokenFile
from smalti.playground.guard import Application
from smalti.playground.opened import Opened
from smalti.playground.share import to_link
from smalti.priors import NextScaleTransformer, TokenLayout
from smalti.quantizers import MultiScaleQuantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, to_token_image

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: make test-browser installs it")

PANELS = ("duel", "dream", "share")
V, SIDES = 12, (1, 2, 4, 16)


@pytest.fixture(scope="module")
def models() -> dict[str, Opened]:
    """A pyramid with a next-scale prior, and a tokenizer with one map."""
    torch.manual_seed(0)
    scales = MultiScaleQuantizer(V, 4, SIDES, quantizer=VectorQuantizer(V, 4))
    tiny = SimpleVQVAE(V, 4, 8, num_res_blocks=0, quantizer=scales).eval()
    models = {"tiny": Opened("tiny", tiny), "flat": Opened("flat", SimpleVQVAE(20, 4, 8, num_res_blocks=0).eval())}
    layout = TokenLayout(V, tuple((side, side) for side in SIDES), (64, 64), tiny.fingerprint)
    sizes = {"depth": 1, "width": 16, "num_heads": 2}
    prior = NextScaleTransformer(layout, 2, copy.deepcopy(scales), sizes, class_names=["cat", "dog"])
    models["tiny"].prior = awake(prior)
    return models


@pytest.fixture(scope="module")
def site(models: dict[str, Opened], build: Callable[[dict[str, Opened]], Application]) -> Iterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(build(models), log_level="critical", timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", browser)
        browser.close()
    server.should_exit = True
    thread.join(timeout=20)
    listener.close()


@pytest.fixture(autouse=True)
def _no_request_leaves(site: Site) -> Iterator[None]:
    yield
    site.close_pages()
    assert site.outside == []
    assert site.errors == []


def decoded(models: dict[str, Opened], name: str) -> np.ndarray:
    """The reconstruction of the dropped picture by a tokenizer."""
    pixels = np.asarray(Image.open(io.BytesIO(picture(1))))
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    tokenizer = models[name].tokenizer
    return tokenizer.decode(tokenizer.encode(image))[0].permute(1, 2, 0).numpy()


def test_a_duel_shows_both_tokenizers_with_their_numbers(site: Site, models: dict[str, Opened]) -> None:
    page = opened(site)
    choose(page, "duel")
    expect(page.locator(".duel-pictures img")).to_have_count(2)
    assert np.array_equal(shown(page, "before"), decoded(models, "tiny"))
    assert np.array_equal(shown(page, "after"), decoded(models, "flat"))
    expect(page.locator(".caption-before")).to_have_text("tiny")
    assert page.locator(".duel-numbers thead th").all_inner_texts() == ["tiny", "flat"]
    tokens = page.locator(".duel-numbers tbody tr", has_text="Tokens")
    assert [text.strip("★ ") for text in tokens.locator("td").all_inner_texts()] == ["277", "256"]
    page.locator(".duel-right").select_option("tiny")
    until(lambda: np.array_equal(shown(page, "after"), decoded(models, "tiny")), page)
    page.locator(".duel-error").check()
    until(lambda: not np.array_equal(shown(page, "after"), decoded(models, "tiny")), page)
    assert page.locator(".stage .after").get_attribute("alt") == "Heat map of the error of tiny"
    choose(page, "look")
    assert np.array_equal(shown(page, "before"), np.asarray(Image.open(io.BytesIO(picture(1)))))


def test_a_painted_region_is_drawn_again_and_the_rest_stays(site: Site) -> None:
    page = opened(site)
    before = shown(page)
    choose(page, "dream")
    expect(page.locator(".overlay")).to_be_visible()
    expect(page.locator(".dream-numbers")).to_contain_text("Bits per token")
    expect(page.locator(".dream-draw")).to_be_disabled()
    page.mouse.move(*at(page, 0.7, 0.7))
    page.mouse.down()
    page.mouse.move(*at(page, 0.9, 0.9), steps=4)
    page.mouse.up()
    expect(page.locator(".dream-draw")).to_be_enabled()
    for _ in range(3):  # a single drawing may repeat the tokens
        page.locator(".dream-draw").click()
        expect(page.locator(".dream-report")).to_contain_text("tokens were drawn again")
        expect(page.locator(".busy")).to_be_hidden()
    until(lambda: not np.array_equal(shown(page), before), page)
    assert np.array_equal(shown(page)[:24, :24], before[:24, :24])
    page.locator(".dream-undo").click()
    for _ in range(3):  # one more than there are steps
        page.locator(".stage").press("z")
    until(lambda: np.array_equal(shown(page), before), page)


def test_a_region_is_painted_and_drawn_by_keyboard(site: Site) -> None:
    page = opened(site)
    choose(page, "dream")
    expect(page.locator(".dream-numbers")).to_contain_text("Bits per token")
    page.locator(".stage").focus()
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".dream-draw")).to_be_enabled()
    expect(page.locator(".dream-point")).to_contain_text("bits")
    page.keyboard.press("d")
    expect(page.locator(".dream-report")).to_contain_text("tokens were drawn again")
    page.locator(".dream-clear").click()
    expect(page.locator(".dream-draw")).to_be_disabled()


def test_predictable_tokens_are_drawn_again_for_a_class(site: Site) -> None:
    page = opened(site)
    before = shown(page)
    choose(page, "dream")
    page.locator(".dream-class").select_option("dog")
    page.locator(".dream-threshold").press("End")
    expect(page.locator(".dream-threshold-text")).to_contain_text("277 of 277 tokens below 16 bits")
    page.locator(".dream-redraw").click()
    expect(page.locator(".dream-report")).to_contain_text("277 tokens were drawn again")
    until(lambda: not np.array_equal(shown(page), before), page)


def test_the_prior_asks_for_its_own_size_and_model(site: Site) -> None:
    page = site.page()
    drop(page, ("wide.png", picture(4, side=80)))
    expect(page.locator(".about")).to_contain_text("wide.png")
    choose(page, "dream")
    expect(page.locator(".dream-hint")).to_contain_text("64 × 64 pixels only")
    page.locator(".dream-cut").click()
    expect(page.locator(".dream-numbers")).to_contain_text("Bits per token")
    assert shown(page).shape == (64, 64, 3)
    page.locator(".model").select_option("flat")
    expect(page.locator(".dream-hint")).to_contain_text("a model of the tokens of flat: smalti play --prior FOLDER")


def test_a_shared_link_opens_as_the_same_picture(site: Site, tmp_path: Path) -> None:
    page = opened(site)
    page.locator(".model").select_option("flat")
    choose(page, "share")
    link = page.locator(".share-link")
    until(lambda: "#t=" in link.input_value(), page)
    expect(page.locator(".share-numbers")).to_contain_text("(flat)")
    receiver = site.page()
    for leave in (False, True):  # the address of an open page, and a page that opens with it
        if leave:
            receiver.goto("about:blank")
        receiver.goto(link.input_value())
        until(lambda: same_picture(receiver, page), receiver)
        expect(receiver.locator(".model")).to_have_value("flat")
    with page.expect_download() as download:
        page.locator(".share-file").click()
    download.value.save_as(tmp_path / "a.tokens")
    other = site.page()
    drop(other, ("a.tokens", (tmp_path / "a.tokens").read_bytes()))
    until(lambda: same_picture(other, page), other)
    expect(other.locator(".model")).to_have_value("flat")


def same_picture(one, other) -> bool:
    return one.locator(".stage").is_visible() and np.array_equal(shown(one), shown(other))


def test_altered_and_foreign_links_are_one_line(site: Site) -> None:
    page = opened(site)
    choose(page, "share")
    link = page.locator(".share-link")
    until(lambda: "#t=" in link.input_value(), page)
    text, before = link.input_value(), shown(page)
    altered = text[:-20] + ("A" if text[-20] != "A" else "B") + text[-19:]
    stranger = SimpleVQVAE(V, 4, 8, num_res_blocks=0).eval()
    tokens = stranger.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    file = TokenFile(stranger.fingerprint, V, (to_token_image("a", tokens, 3),))
    for given, message in ((altered, "checksum differs"), (to_link(file.to_bytes(), text), stranger.fingerprint[:12])):
        page.locator(".share-given").fill(given)
        page.locator(".share-form button").click()
        expect(page.locator(".message")).to_contain_text(message)
        assert np.array_equal(shown(page), before)


def test_the_panels_speak_chinese_and_fit_a_narrow_screen(site: Site) -> None:
    page = opened(site, width=390, height=800)  # type: ignore[arg-type]
    page.locator(".language").click()
    for name in PANELS:
        choose(page, name)
        expect(page.locator(".busy")).to_be_hidden()
        visible = page.locator(f"#panel-{name}").inner_text()
        assert any("\u4e00" <= letter <= "\u9fff" for letter in visible), name
        assert "undefined" not in visible, name
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
