"""From own photos to own generator: the five commands, as a user types them, on a small messy folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.cli import main
from smalti.data import load_image
from smalti.zoo import load, load_prior

pytest.importorskip("pyarrow", reason="needs the extra smalti[datasets]")

PICTURES = 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of pictures in all sizes; one file is corrupt, one grey, one has an alpha channel."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for c, name in enumerate(("cats", "dogs", "rockets")):
        (folder / name).mkdir()
        for i in range(PICTURES):
            hue = np.array([(c == 0) * 200, (c == 1) * 200, (c == 2) * 200]) + rng.integers(0, 50, 3)
            small = np.clip(hue + rng.integers(-30, 30, (5, 4, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(small).resize((70 + 9 * i, 100)).save(folder / name / f"{i}.png")
    (folder / "cats" / "0.png").write_bytes(b"not an image")
    Image.open(folder / "dogs" / "1.png").convert("L").save(folder / "dogs" / "1.png")
    Image.open(folder / "rockets" / "2.png").convert("RGBA").save(folder / "rockets" / "2.png")
    return folder


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0, words


TINY = ["--optimization.steps", "3", "--optimization.batch_size", "8", "--device", "cpu"]
TOKENIZERS = {
    "many scales": ["--model", "multi-scale", "--model_args.hidden_dim", "16", "--model_args.vocab_size", "16"],
    "one scale": ["--model", "simple", "--model_args.hidden_dim", "8", "--model_args.vocab_size", "16"],
}


@pytest.mark.parametrize(("tokenizer", "channels"), [("many scales", 3), ("one scale", 1)])
def test_five_commands(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str, channels: int
) -> None:
    """On images that are not square; `tests/jobs/test_every_quantizer.py` has square ones."""
    tok, tokens, prior, samples = (tmp_path / name for name in ("tok", "tokens", "prior", "samples"))
    grey = ["--model_args.image_channels", "1"] if channels == 1 else []
    run("train", photos, "--out", tok, *TOKENIZERS[tokenizer], *grey, "--input.size", "[96, 64]", *TINY)
    run("eval", tok, photos)
    run("tokenize", tok, photos, "--out", tokens)
    sizes = ["--prior_args.depth", "1", "--prior_args.width", "32", "--prior_args.num_heads", "2"]
    run("train-prior", tokens, "--out", prior, *sizes, *TINY)
    run("sample", prior, "--class", "2", "-n", "3", "--out", samples, "--report", "--precision", "bf16")
    out = capsys.readouterr().out
    assert "23 images" in out  # one of 24 is corrupt
    assert "cats/0.png" in out
    assert "3 images of class 'rockets' (#2)" in out
    assert load_prior(prior).class_names == ("cats", "dogs", "rockets")
    pictures = sorted(path for path in samples.glob("*.png") if path.name != "grid.png")
    assert [load_image(path, channels).shape for path in pictures] == [(96, 64, channels)] * 3
    assert (samples / "growth.gif").exists() == (tokenizer == "many scales")
    assert (samples / "report.html").stat().st_size > 1000
    log = [json.loads(line) for line in (prior / "log.jsonl").read_text().splitlines()]
    assert log[-1]["validation_bits_per_token"] > 0
    _edit(prior, photos, tmp_path, tokenizer == "many scales")
    _refuse(prior, tok, tokens, tmp_path, capsys)


def _edit(prior: Path, photos: Path, folder: Path, many: bool) -> None:
    """In-painting changes tokens inside the box only; keeping scales keeps the coarse ones."""
    photo = photos / "dogs" / "3.png"
    run("sample", prior, "--image", photo, "--box", "[0.5, 0.0, 1.0, 1.0]", "-n", "2", "--out", folder / "inside")
    run("sample", prior, "--image", photo, "--box", "[0.5, 0.0, 1.0, 1.0]", "--class", "cats", "--out", folder / "swap")
    assert len(list((folder / "inside").glob("0*.png"))) == 2
    if many:
        run("sample", prior, "--image", photo, "--scales", "3", "-n", "1", "--out", folder / "details")


def _refuse(prior: Path, tok: Path, tokens: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What does not fit ends in one line: a class that is not there, scales beyond, tokens of another tokenizer."""
    capsys.readouterr()
    for words, message in (
        (["sample", prior, "--class", "7", "--out", folder / "x"], "label: got '7', expected #0 to #2 or one of cats"),
        (["sample", prior, "--class", "cows", "--out", folder / "x"], "label: got 'cows'"),
        (["sample", prior, "--scales", "2", "--out", folder / "x"], "image: got none, expected a photograph"),
        (["sample", tok, "--out", folder / "x"], "has type 'SimpleVQVAE'"),
        (["train-prior", tokens, "--out", folder / "p", "--prior", "var-d17"], "prior: got 'var-d17'"),
        (["train-prior", tokens, "--out", folder / "p", "--prior_args.heads", "2"], "prior argument: got 'heads'"),
    ):
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (folder / "x").exists()
    model = load(tok)
    next(model.parameters()).data.add_(1)
    model.save_pretrained(prior / "tokenizer")
    assert main(["sample", str(prior), "--out", str(folder / "x")]) == 2
    assert "another tokenizer's" in capsys.readouterr().err
