"""`compare`: the rows against `evaluate` and `encode`, the codecs against Pillow, the pictures against the images."""

import io
import json
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from published import FAMILY, checkpoint
from torch import nn

from smalti.cli import main
from smalti.data import GAP, load_image, open_images
from smalti.evaluation.gallery import LABEL_HEIGHT, gallery
from smalti.evaluation.inputs import prepared_images
from smalti.jobs.compare import CompareConfig, compare
from smalti.jobs.encode import EncodeConfig, encode
from smalti.jobs.evaluate import EvaluateConfig, evaluate
from smalti.metrics import CURVES, code_at, psnr, save_convolutional_features
from smalti.metrics.codecs import QUALITIES
from smalti.tokenizers import SimpleVQVAE


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two untrained tokenizers of different price."""
    torch.manual_seed(0)
    folders = []
    for vocab_size, options in ((20, {"patch_nums": (1, 2, 4)}), (300, {})):
        folders.append(str(tmp_path_factory.mktemp("run")))
        SimpleVQVAE(vocab_size, 8, 16, num_stages=2, **options).save_pretrained(folders[-1])
    return tuple(folders)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.fromarray(open_images("embedded:test").load(0))
    for i, (height, width) in enumerate(((60, 72), (60, 72), (48, 80))):
        photo.crop((50 * i, 60, 50 * i + width, 60 + height)).save(folder / f"photo-{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def comparison(runs, photos):
    return compare(CompareConfig(runs, photos, judges=(), batch_size=2))


def test_each_row_is_what_an_evaluation_says(runs, photos, comparison):
    for run, row in zip(runs, comparison.rows, strict=False):
        alone = evaluate(EvaluateConfig(run, photos, judges=(), batch_size=3))
        assert (row.name, row.costs.fingerprint) == (run, alone.fingerprint)
        assert row.quality == pytest.approx(alone.quality, abs=1e-4)
        assert row.costs.usage == alone.usage
        for name in ("tokens_per_image", "bits_per_pixel", "entropy_bits_per_pixel"):
            assert getattr(row.costs, name) == pytest.approx(getattr(alone, name))
        assert min(row.costs.encode_images_per_second, row.costs.decode_images_per_second) > 0
        assert comparison.images_sha256 == alone.images_sha256


def token_file_bytes(run, photos, folder):
    """Bytes of the token file of each photo."""
    sizes = []
    for i in range(3):
        encode(EncodeConfig(run, (f"{photos}/photo-{i}.png",), folder / "tokens", force=True))
        sizes.append((folder / "tokens").stat().st_size)
    return sizes


def test_bytes_are_those_of_the_files_that_encode_writes(runs, photos, comparison, tmp_path):
    for k, run in enumerate(runs):
        sizes = token_file_bytes(run, photos, tmp_path)
        assert comparison.rows[k].file_bytes == pytest.approx(np.mean(sizes))
        assert comparison.rows[k].file_bits_per_pixel == pytest.approx(8 * sum(sizes) / (2 * 60 * 72 + 48 * 80))


def test_codecs_stand_at_the_bytes_of_each_tokenizer(runs, photos, comparison, tmp_path):
    for k, row in enumerate(comparison.rows[2:]):
        run, (title, codec) = runs[k // 3], (("JPEG", "jpeg"), ("WebP", "webp"), ("AVIF", "avif"))[k % 3]
        larger = 0
        for i, wanted in enumerate(token_file_bytes(run, photos, tmp_path)):
            image = torch.from_numpy(load_image(f"{photos}/photo-{i}.png").copy()).permute(2, 0, 1)
            larger += code_at(image, codec, QUALITIES[codec][0]).num_bytes > wanted
        size = f"at its lowest quality, {row.file_bytes:.0f} bytes per image"
        mixed = f"{title} at the bytes of {run}, {larger} of 3 images {size}"
        assert row.name == {0: f"{title} at the bytes of {run}", 3: f"{title} {size}"}.get(larger, mixed)
    row = comparison.rows[6]
    assert row.file_bytes == pytest.approx(comparison.rows[1].file_bytes, rel=0.05)
    assert row.costs is None
    original = load_image(f"{photos}/photo-0.png")
    column = comparison.picture[:, :, 4:76]  # the first image of every row
    shown = 0
    for quality in range(101):
        buffer = io.BytesIO()
        Image.fromarray(original).save(buffer, "WEBP", quality=quality)
        decoded = torch.from_numpy(np.asarray(Image.open(buffer).convert("RGB")).copy()).permute(2, 0, 1)
        starts = (column == decoded[:, :1]).all(2).all(0).nonzero().flatten().tolist()
        shown += sum(torch.equal(column[:, start : start + 60], decoded) for start in starts)
    assert shown >= 2  # at the bytes of each


def test_curves_are_the_codecs_at_rising_qualities(runs, photos, tmp_path, capsys):
    """Their points against Pillow; the plot has one panel for each measure."""
    save_convolutional_features(tmp_path / "net", [nn.Conv2d(3, 8, 3)])
    options = ["--judges", f'["{tmp_path / "net"}"]', "--size", "32", "--codecs", '["jpeg"]', "--pictures", "1"]
    assert main(["compare", *runs, photos, *options, "--curves", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "compare.json").read_text())
    rows = told["curves"]["jpeg"]
    assert [row["name"] for row in rows] == [f"JPEG at quality {quality}" for quality in CURVES["jpeg"]]
    for row, quality in zip(rows, CURVES["jpeg"], strict=True):
        sizes = []
        for image, _ in prepared_images(open_images(photos), (32, 32), CompareConfig(runs, photos)):
            for pixels in image.permute(0, 2, 3, 1).numpy():
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True, subsampling="4:2:0")
                sizes.append(len(buffer.getvalue()))
        assert row["file_bytes"] == pytest.approx(np.mean(sizes))
    plot = load_image(tmp_path / "out" / "rate_distortion.png")
    assert plot.shape[1] == 500 * len(panels(told["rows"][0]))
    assert plot.std() > 0


def panels(row):
    """PSNR, SSIM, and what each judge says."""
    numbers = {"distance", "frechet_distance", "kid", "inception_score"}
    return ["psnr", "ssim", *(key for judge in row["judges"] for key in judge if key in numbers)]


def test_a_plot_without_its_library_is_refused_before_the_work(runs, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["compare", *runs, photos, "--curves", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'smalti[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_codec_at_its_smallest_file_is_one_row(photos, tmp_path):
    torch.manual_seed(0)
    for name in ("a", "b"):
        SimpleVQVAE(4, 8, 16, num_stages=4).save_pretrained(tmp_path / name)
    both = (str(tmp_path / "a"), str(tmp_path / "b"))
    rows = compare(CompareConfig(both, photos, judges=(), codecs=("jpeg",))).rows
    assert [row.name for row in rows[2:]] == [f"JPEG at its lowest quality, {rows[2].file_bytes:.0f} bytes per image"]
    assert rows[2].file_bytes > rows[0].file_bytes


def test_the_grid_shows_originals_and_reconstructions(runs, photos):
    """Every row is a label and the pictures; labels are told apart by what they say."""
    result = compare(CompareConfig(runs, photos, judges=(), codecs=()))
    first = torch.from_numpy(load_image(f"{photos}/photo-0.png").copy()).permute(2, 0, 1)
    assert result.picture.shape[2] == 3 * (80 + GAP) - GAP  # the widest picture has 80 columns, the tallest 60 rows
    assert torch.equal(result.picture[:, LABEL_HEIGHT : LABEL_HEIGHT + 60, 4:76], first)  # centred in 80 columns
    last = result.picture[:, -GAP - 60 : -GAP, 4:76]
    alone = evaluate(EvaluateConfig(runs[1], f"{photos}/photo-0.png", judges=()))
    assert psnr(last[None], first[None]).item() == pytest.approx(alone.quality["psnr"], abs=1e-3)


def test_labels_are_whole_even_where_they_are_long():
    pictures = [torch.zeros(3, 8, 100, dtype=torch.uint8)]
    grids = [gallery([(label, pictures)]) for label in ("a", "a" * 40, "a" * 39 + "b")]
    heights = [(grid.shape[1] - 8 - GAP) / LABEL_HEIGHT for grid in grids]
    assert heights[0] == 1 < heights[1] == heights[2]
    assert not torch.equal(grids[1], grids[2])


def test_large_grey_pictures_are_shrunk_for_the_grid():
    grid = gallery([("grey", [torch.full((1, 300, 600), 90, dtype=torch.uint8)])])
    assert grid.shape == (3, LABEL_HEIGHT + 128 + GAP, 256)
    assert torch.equal(grid[:, LABEL_HEIGHT:-GAP].unique(), torch.tensor([90], dtype=torch.uint8))


def test_published_checkpoints_stand_beside_ours(golden, runs, photos):
    theirs = str(checkpoint(golden, "taming_vqgan_f16"))
    result = compare(CompareConfig((runs[0], theirs), photos, judges=(), size=32, codecs=(), pictures=1))
    assert "taming_vqgan_f16" in FAMILY
    assert [row.name for row in result.rows] == [runs[0], theirs]
    assert result.rows[1].costs.tokens_per_image == 4  # 32 / 16 squared
    assert result.rows[1].costs.parameters > 10**5


def test_json_out_and_the_command(runs, photos, tmp_path, capsys):
    save_convolutional_features(tmp_path / "net", [nn.Conv2d(3, 8, 3)])
    out = tmp_path / "out"
    options = ["--judges", f'["{tmp_path / "net"}"]', "--size", "32", "--codecs", '["webp"]', "--pictures", "2"]
    assert main(["compare", *runs, photos, *options, "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told == json.loads((out / "compare.json").read_text())
    assert "warning: 3 images" in printed.err
    grid = load_image(out / "grid.png")
    assert grid.shape[1:] == (2 * 32 + GAP, 3)
    assert [len(row["judges"]) for row in told["rows"]] == [1] * len(told["rows"])
    assert main([*shlex.split(told["command"])[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for one, other in zip(told["rows"], again["rows"], strict=True):
        speeds = {"encode_images_per_second", "decode_images_per_second"}
        assert {k: v for k, v in one.items() if k not in speeds} == {k: v for k, v in other.items() if k not in speeds}
    assert main(["compare", *runs, photos, *options, "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_table_has_a_line_for_each(runs, photos, comparison, capsys):
    assert main(["compare", *runs, photos, "--judges", "[]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in comparison.rows:
        (line,) = [line for line in lines if f"│ {row.name} " in line]
        assert f"{row.quality['psnr']:.2f}" in line
        assert f"{row.file_bytes:.0f}" in line
    assert len({len(line) for line in lines if line.startswith("│")}) == 1  # no cell is folded


def test_what_cannot_be_compared_is_refused(runs, photos, tmp_path, capsys):
    SimpleVQVAE(20, 8, 16, num_stages=2, image_channels=1).save_pretrained(tmp_path / "grey")
    for k, side in enumerate((24, 32)):
        SimpleVQVAE(20, 8, 16, num_stages=2).save_pretrained(tmp_path / f"{k}")
        (tmp_path / f"{k}" / "train.yaml").write_text(f"input: {{size: {side}}}")
    calls = {
        "got tokenizers of RGB images and of grey images": [runs[0], str(tmp_path / "grey"), photos],
        "for runs of different sizes": [str(tmp_path / "0"), str(tmp_path / "1"), photos],
        "/nowhere": [runs[0], "/nowhere", photos],
        "missing DATA": [],
        "codecs": [*runs, photos, "--codecs", '["png"]'],
        "pictures: got 0": [*runs, photos, "--pictures", "0"],
    }
    for complaint, arguments in calls.items():
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
