"""`smalti encode`, `decode` and `reconstruct` as a user calls them: what is printed, what is refused and how."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from smalti.cli import main
from smalti.data import load_image, open_images
from smalti.formats import read_token_file
from smalti.tokenizers import SimpleVQVAE


def save_run(folder, seed=0):
    torch.manual_seed(seed)
    tokenizer = SimpleVQVAE(20, 8, 16, num_stages=2, patch_nums=(1, 2, 4))
    with torch.no_grad():
        for codebook in tokenizer.quantizer.quantizers:
            codebook.embedding.weight.copy_(0.1 * torch.randn(20, 8))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.fromarray(open_images("embedded:test").load(0))
    photo.resize((30, 21)).save(folder / "flat.png")
    photo.resize((8, 12)).save(folder / "tall.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "foreign").write_bytes(b"GIF89a")
    return folder


def test_there_and_back(run, photos, tmp_path, capsys):
    tokens, out = str(tmp_path / "t"), tmp_path / "out"
    assert main(["encode", run, str(photos / "flat.png"), str(photos / "tall.jpg"), "-o", tokens]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    # proportional grids: 2 x 2, 3 x 4, 6 x 8 of a 21 x 30 image; 1 x 1, 2 x 1, 3 x 2 of one of 12 x 8
    assert lines[0] == "flat.png: 30 x 21, 64 tokens"
    assert lines[1] == "tall.jpg: 8 x 12, 9 tokens"
    size = (tmp_path / "t").stat().st_size
    assert lines[2] == f"{tokens}: 2 images, {size} bytes, {8 * size / (21 * 30 + 12 * 8):.4f} bits per pixel"
    assert (len(lines), printed.err) == (3, "")

    assert main(["decode", run, tokens, "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/flat.png: 30 x 21, from flat.png",
        f"{out}/tall.png: 8 x 12, from tall.jpg",
    ]
    assert main(["reconstruct", run, str(photos / "flat.png"), str(tmp_path / "again.png")]) == 0
    line = capsys.readouterr().out
    image, again = load_image(photos / "flat.png"), load_image(tmp_path / "again.png")
    np.testing.assert_array_equal(again, load_image(out / "flat.png"))
    (decibels,) = re.findall(r"PSNR (\S+) dB", line)
    assert float(decibels) == pytest.approx(peak_signal_noise_ratio(image, again, data_range=255), abs=0.006)


def test_force(run, photos, tmp_path, capsys):
    tokens, picture, source = str(tmp_path / "t"), str(tmp_path / "a.png"), str(photos / "flat.png")
    calls = [
        ["encode", run, source, "--out", tokens],
        ["decode", run, tokens, "--out", picture],
        ["reconstruct", run, source, picture],
    ]
    for call in calls:
        main(call)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for call in calls:
        capsys.readouterr()
        assert main(call) == 2
        assert "already exists" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for call in calls:
        assert main([*call, "--force"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_broken_tokens_say_what_is_wrong(run, photos, tmp_path, capsys):
    tokens = tmp_path / "t"
    main(["encode", run, str(photos / "flat.png"), "-o", str(tokens)])
    whole, other_run = tokens.read_bytes(), save_run(tmp_path / "other", seed=1)
    fingerprint = read_token_file(tokens).fingerprint
    cases = [
        (run, b"GIF89a", "not a smalti token file"),
        (run, whole[:8] + b"\x07" + whole[9:], "unsupported version: got 7"),
        (run, whole[:-1], f"truncated: expected {len(whole)} bytes, found {len(whole) - 1}"),
        (run, whole[:-6] + b"!" + whole[-5:], "altered: checksum differs"),
        (other_run, whole, f"made with another model: file fingerprint {fingerprint[:12]}"),
    ]
    for model, data, reason in cases:
        tokens.write_bytes(data)
        capsys.readouterr()
        assert main(["decode", model, str(tokens), "-o", str(tmp_path / "a.png")]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"smalti decode: error: {tokens}: {reason}")
        assert printed.err.count("\n") == 1
        assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("encode", "IMAGES"),
        ("encode {run} -o {tmp}/t", "IMAGES"),
        ("encode {run} {photos}/flat.png", "--out"),
        ("encode {run} {photos}/broken.png -o {tmp}/t", "broken.png"),
        ("encode {run} {photos}/missing.png -o {tmp}/t", "missing.png"),
        ("encode {run} {photos} -o {tmp}/t", "photos"),
        ("encode /nowhere/run {photos}/flat.png -o {tmp}/t", "/nowhere/run"),
        ("encode {run} {photos}/flat.png -o /nowhere/t", "/nowhere"),
        ("encode {run} {photos}/flat.png -o {tmp}/t --max_pixels 100", "max_pixels = 100"),
        ("encode {run} {photos}/flat.png -o {tmp}/t --device quantum", "quantum"),
        ("encode {run} {photos}/flat.png -o {tmp}/t --forse", "--force"),
        ("decode {run} {photos}/missing -o {tmp}/a.png", "missing"),
        ("decode {run} {photos}/foreign -o {tmp}/a.png", "not a smalti token file"),
        ("decode {run} {photos} -o {tmp}/a.png", "photos"),
        ("reconstruct {run} {photos}/flat.png", "OUT"),
        ("reconstruct {run} {photos}/flat.png {tmp}/a.gif", ".gif"),
        ("reconstruct {run} {photos}/broken.png {tmp}/a.png", "broken.png"),
    ],
)
def test_mistakes_are_one_line_and_code_2(run, photos, tmp_path, call, complaint, capsys):
    words = [word.format(run=run, photos=photos, tmp=tmp_path) for word in call.split()]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"smalti {words[0]}: error: ")
    assert printed.err.count("\n") == 1
    assert complaint in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["encode", "reconstruct", "eval", "tokenize"])
def test_a_network_that_gives_nan_ends_in_one_line(verb, tmp_path, photos, capsys):
    tokenizer = SimpleVQVAE(8, 4, 8)
    next(tokenizer.encoder.parameters()).data.fill_(torch.nan)
    tokenizer.save_pretrained(tmp_path / "run")
    image, out = str(photos / "flat.png"), str(tmp_path / "out.png")
    arguments = {"eval": ["--data", image], "tokenize": [image, "-o", str(tmp_path / "set")]}.get(
        verb, [image, "-o", out]
    )
    assert main([verb, str(tmp_path / "run"), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"smalti {verb}: error: z: got non-finite values")
    assert not (tmp_path / "out.png").exists()
