"""`evaluate` against the same numbers taken by hand from a real tokenizer, and what must not change them."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from smalti.data import load_image, open_images
from smalti.jobs.evaluate import EvaluateConfig, evaluate
from smalti.ops.pixels import to_float
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import load

SIZES = [(40, 52), (40, 52), (33, 17), (40, 52), (9, 30), (1, 1)]  # height, width


def plain(**options):
    """Without networks that judge: `test_judges.py` has those."""
    return EvaluateConfig(judges=(), **options)


def to_chw(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained tokenizer with three scales, whose 20 codes are latents of a photograph, so that many are used."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    tokenizer = SimpleVQVAE(20, 8, 16, num_stages=2, patch_nums=(1, 2, 4))
    with torch.no_grad():
        photo = to_float(to_chw(open_images("embedded:test").load(1)[:80, :96]))
        latents = tokenizer.encoder(photo).flatten(2)[0].T  # (20 * 24, 8)
        for codebook in tokenizer.quantizer.quantizers:
            codebook.embedding.weight.copy_((latents - latents.mean(0))[::24])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Crops of a photograph in several sizes, as PNG files; one file is no image."""
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.fromarray(open_images("embedded:test").load(0))
    for i, (height, width) in enumerate(SIZES):
        photo.crop((50 * i, 60, 50 * i + width, 60 + height)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def by_hand(run, photos):
    """What an evaluation at native size should say, one image at a time and in plain Python."""
    tokenizer = load(run)
    decibels, codes, pixels = [], [[], [], []], 0
    for i, (height, width) in enumerate(SIZES):
        image = to_chw(load_image(photos / f"{i}.png"))
        tokens = tokenizer.encode(image)
        decibels.append(peak_signal_noise_ratio(image.numpy(), tokenizer.decode(tokens).numpy(), data_range=255))
        for scale, indices in zip(codes, tokens.indices, strict=True):
            scale += indices.flatten().tolist()
        pixels += height * width
    return decibels, codes, pixels


def entropy(codes):
    return -sum(n / len(codes) * math.log2(n / len(codes)) for n in Counter(codes).values())


def test_numbers_are_those_taken_by_hand(run, photos, by_hand):
    decibels, codes, pixels = by_hand
    result = evaluate(plain(run=str(run), data=str(photos)))
    count = sum(len(scale) for scale in codes)
    assert result.size is None
    assert result.quality["images"] == len(SIZES)
    assert result.quality["ssim_images"] == 4  # 9 x 30 and 1 x 1 have no window
    assert result.quality["psnr"] == pytest.approx(np.mean(decibels), abs=1e-4)
    assert result.tokens_per_image == pytest.approx(count / len(SIZES))
    assert result.bits_per_pixel == pytest.approx(count * 5 / pixels)  # 20 codes take 5 bits
    assert result.entropy_bits_per_pixel == pytest.approx(sum(len(s) * entropy(s) for s in codes) / pixels)
    for statistics, scale in zip(result.usage.scales, codes, strict=True):
        assert statistics.tokens == len(scale)
        assert statistics.used_codes == len(set(scale))
        assert statistics.entropy_bits == pytest.approx(entropy(scale), abs=1e-9)
    assert result.usage.grids[-1] == (10, 13)  # of 40 x 52 at stride 4
    assert result.fingerprint == load(run).fingerprint


def test_unreadable_files_are_named_and_in_no_number(run, photos):
    result = evaluate(plain(run=str(run), data=str(photos)))
    assert list(result.unreadable) == ["broken.png"]
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told["unreadable_count"] == 1
    assert list(told["unreadable"]) == ["broken.png"]
    assert told["images"] == len(SIZES)


@pytest.mark.parametrize("size", ["native", 24, (20, 36)])
def test_batch_size_changes_nothing(run, photos, size):
    config = plain(run=str(run), data=str(photos), size=size, batch_size=1)
    one, four = (evaluate(replace(config, batch_size=batch_size)).to_dict() for batch_size in (1, 4))
    assert one["codes"] == four["codes"]
    assert one["scales"] == four["scales"]
    for name in ("psnr", "ssim", "psnr_mean_color", "bits_per_pixel", "entropy_bits_per_pixel", "tokens_per_image"):
        assert one[name] == pytest.approx(four[name], rel=1e-4)


def test_huge_pictures_pass_one_by_one_with_the_same_result(run, photos, monkeypatch):
    config = plain(run=str(run), data=str(photos))
    whole = evaluate(config)
    monkeypatch.setattr("smalti.evaluation.inputs.PIXELS_AT_ONCE", 1)
    parts = evaluate(config)
    assert parts.usage == whole.usage
    assert parts.quality == pytest.approx(whole.quality, rel=1e-4)


def test_bits_per_pixel_count_the_image_without_its_padding(run, tmp_path):
    """5 x 6 pixels are padded to 8 x 8: a 2 x 2 latent, after grids of 1 x 1 (round(0.25 * 2)) and 1 x 1."""
    Image.new("RGB", (6, 5), (200, 30, 60)).save(tmp_path / "small.png")
    result = evaluate(plain(run=str(run), data=str(tmp_path)))
    assert result.tokens_per_image == 1 + 1 + 4
    assert result.bits_per_pixel == pytest.approx(6 * 5 / 30)


@pytest.mark.parametrize(("size", "expected"), [(24, (24, 24)), ([16, 40], (16, 40)), (None, None)])
def test_the_size_is_the_one_trained_at_unless_given(run, photos, tmp_path, size, expected):
    folder = tmp_path / "run"
    load(run).save_pretrained(folder)
    (folder / "train.yaml").write_text(yaml.safe_dump({"data": "photos", "input": {"size": size, "flip": True}}))
    config = plain(run=str(folder), data=str(photos))
    assert evaluate(config).size == expected
    assert evaluate(replace(config, size="native")).size is None
    assert evaluate(replace(config, size=12)).size == (12, 12)


@pytest.mark.parametrize("recipe", ["steps: 3", "input: 64", "input: {size: [1, 2, 3]}", "- [", "input: {size: big}"])
def test_a_recipe_without_a_size_is_refused_by_name(run, photos, tmp_path, recipe):
    load(run).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "train.yaml").write_text(recipe)
    with pytest.raises(ValueError, match=r"size: .*train\.yaml has no input\.size|train\.yaml: not a recipe"):
        evaluate(plain(run=str(tmp_path / "run"), data=str(photos)))


def test_a_collapsed_codebook_is_found(run, photos, tmp_path):
    tokenizer = load(run)
    with torch.no_grad():  # one code in the middle, all others out of reach
        for codebook in tokenizer.quantizer.quantizers:
            codebook.embedding.weight.fill_(1e4)
            codebook.embedding.weight[7] = 0
    tokenizer.save_pretrained(tmp_path)
    result = evaluate(plain(run=str(tmp_path), data=str(photos), size=32))
    assert [reason.split(" used ")[0] for reason in result.collapse] == [
        "scale 0 (2x2)",
        "scale 1 (4x4)",
        "scale 2 (8x8)",
        "1 of 20 possible codes were used, less than 10%",
    ]
    assert result.to_dict()["collapsed"] is True
    assert result.entropy_bits_per_pixel == 0


def test_a_tokenizer_that_gives_nan_is_refused(run, photos, tmp_path):
    tokenizer = load(run)
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).fill_(math.nan)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reconstruction: got NaN"):
        evaluate(plain(run=str(tmp_path), data=str(photos)))


def test_progress_ends_at_the_end(run, photos):
    calls = []
    evaluate(plain(run=str(run), data=str(photos)), lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(SIZES) + 1, len(SIZES) + 1)
    assert calls == sorted(calls)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("workers", -1), ("min_usage", 1.5), ("size", 0), ("size", (4, -1))]
)
def test_bad_values_are_refused_when_built(name, value):
    with pytest.raises(ValueError, match=f"{name}: got"):
        plain(run="run", data="data", **{name: value})


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "nonsense:1"])
def test_unknown_devices_are_refused(run, photos, device):
    with pytest.raises(ValueError, match=f"device: got '{device}'"):
        evaluate(plain(run=str(run), data=str(photos), device=device))


def test_missing_things_are_refused_by_name(run, photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(plain(run=str(tmp_path / "nowhere"), data=str(photos)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(plain(run=str(run), data=str(tmp_path / "nowhere")))
    (tmp_path / "only.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"none of the 1 images.*only.png"):
        evaluate(plain(run=str(run), data=str(tmp_path)))
