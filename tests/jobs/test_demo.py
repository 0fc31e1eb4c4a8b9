"""The demonstration: what it leaves, that the page needs nothing from outside, and what it refuses."""

import re
from pathlib import Path

import pytest
import torch

import smalti.zoo.box
from smalti.cli.demo import next_steps
from smalti.evaluation.report import token_colours
from smalti.jobs.demo import DemoConfig, DemoResult, classic_demonstrations, demo
from smalti.training import OptimizationConfig
from smalti.zoo import load

pytest.importorskip("skimage", reason="the embedded photographs are in the wheels of smalti[demo]")


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the demonstration says, line by line."""
    return []


@pytest.fixture(scope="module")
def result(tiny_box: Path, said: list[str], tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smalti.zoo.box, "BOX", tiny_box)
        return demo(DemoConfig(out, OptimizationConfig(steps=2, batch_size=2)), say=said.append)


def test_everything_promised_is_there(result: DemoResult) -> None:
    folder = result.report.parent
    assert load(result.run).vocab_size == result.train_set.usage.vocab_size
    for name in ("astronaut", "flower"):
        for end in (".png", ".tokens", "-decoded.png"):
            assert (folder / "photographs" / (name + end)).stat().st_size > 0


def test_the_page_opens_offline_and_shows_every_scale(result: DemoResult) -> None:
    page = result.report.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page
    scales = len(result.train_set.usage.scales)
    assert page.count("data:image/png;base64,") == 2 * (4 + 2 * scales)  # original, tokens, JPEG, WebP
    assert page.count("<polyline") >= 4 + scales  # losses, PSNR, usage of all and of each scale
    for name in ("astronaut", "flower"):
        size = (result.report.parent / "photographs" / f"{name}.tokens").stat().st_size
        assert f"tokens 词元: {size:,} bytes, " in page
    for codec in ("JPEG", "WebP"):
        assert len(re.findall(rf"{codec}: [\d,]+ bytes, [\d.]+ dB</figcaption>", page)) == 2
    assert f"{result.held_out.quality['psnr']:.2f} dB" in page


def test_a_former_demonstration_is_replaced_only_by_force(result: DemoResult, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="force=True"):
        demo(DemoConfig(result.report.parent))
    (tmp_path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="holds no demonstration"):
            demo(DemoConfig(tmp_path, force=force))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(FileExistsError, match=r"report\.html"):
        demo(DemoConfig(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_classic_demonstrations_speak_both_languages_and_leave_the_seed_alone() -> None:
    state = torch.get_rng_state()
    text = "\n".join(classic_demonstrations())
    assert torch.equal(state, torch.get_rng_state())
    for expected in ("(1, 64, 8, 8)", "(1, 8, 8)", "(1, 3, 64, 64)", "(1, 16, 16)", "量化损失", "reconstruction"):
        assert expected in text


@pytest.mark.usefixtures("box")
def test_the_box_comes_first_where_it_has_weights(result: DemoResult, said: list[str]) -> None:
    folder = result.report.parent
    assert said[0] == "photo-f8, which comes with the package"
    names = {path.name for path in (folder / "box").iterdir()}
    assert {"astronaut.tokens", "astronaut-decoded.png", "flower.tokens", "comparison.png"} <= names
    size = (folder / "box/astronaut.tokens").stat().st_size
    assert f"{size:,} bytes" in said[1]
    for start in (
        "  photo-f8: PSNR ",
        "  JPEG at ",  # the bytes of photo-f8, or its lowest quality
        "  WebP at ",
    ):
        assert any(line.startswith(start) for line in said)
    assert next_steps(folder)[0].startswith("smalti reconstruct PHOTO.jpg photo.png")
    with pytest.raises(FileExistsError, match=r"/box exists; force=True"):
        demo(DemoConfig(folder))


def test_token_colours_depend_on_the_code_alone() -> None:
    once = token_colours(torch.tensor([[0, 5], [7, 5]]))
    again = token_colours(torch.tensor([[5, 0]]))
    assert torch.equal(once[:, 0, 1], again[:, 0, 0])
    assert torch.equal(once[:, 0, 0], again[:, 0, 1])
    assert len({tuple(once[:, y, x].tolist()) for y in range(2) for x in range(2)}) == 3
