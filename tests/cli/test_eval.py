"""`smalti eval` as a user and as a program call it: the table, the JSON, the exit codes."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from smalti.cli import main
from smalti.data import open_images
from smalti.evaluation.measurement import warnings_about_quality
from smalti.jobs.evaluate import EvaluateConfig, evaluate
from smalti.tokenizers import SimpleVQVAE

EVAL = ["eval", "--judges", "[]"]
"""Without networks that judge, whose loading takes longer than all the rest."""


def save_run(folder, codes):
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(20, 8, 16, num_stages=2, patch_nums=(1, 2, 4))
    with torch.no_grad():
        for codebook in tokenizer.quantizer.quantizers:
            codebook.embedding.weight.copy_(codes)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    return save_run(tmp_path_factory.mktemp("run"), torch.randn(20, 8, generator=generator))


@pytest.fixture(scope="module")
def collapsed_run(tmp_path_factory):
    codebook = torch.full((20, 8), 1e4)
    codebook[3] = 0
    return save_run(tmp_path_factory.mktemp("collapsed"), codebook)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.fromarray(open_images("embedded:test").load(0))
    for i in range(3):
        photo.crop((70 * i, 90, 70 * i + 64, 154)).save(folder / f"{i}.png")
    (folder / "[bold]broken.png").write_bytes(b"no picture")
    return str(folder)


def test_json_is_all_of_stdout_and_equals_the_result(run, photos, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert main([*EVAL, run, photos, "--json", "--size", "32", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    expected = evaluate(EvaluateConfig(run=run, data=photos, judges=(), size=32)).to_dict()
    told = json.loads(printed.out)
    assert told == json.loads(out.read_text())
    assert told.pop("command").startswith("smalti eval ")
    assert told == json.loads(json.dumps(expected))
    assert printed.err.splitlines() == [f"smalti eval: warning: {warning}" for warning in expected["warnings"]]


def test_worse_than_one_mean_colour_is_said_in_one_line(run, photos, tmp_path, capsys):
    """An untrained tokenizer is; one whose pictures are right is not."""
    assert main([*EVAL, run, photos, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["psnr"] < found["psnr_mean_color"]
    (line,) = printed.err.splitlines()
    assert line == (
        f"smalti eval: warning: {run}: PSNR {found['psnr']:.2f} dB is below the {found['psnr_mean_color']:.2f} dB of "
        "one mean colour per image: it has learnt too little, or other images"
    )
    assert warnings_about_quality("x", {"psnr": 20.0, "psnr_mean_color": 19.9}) == ()
    assert warnings_about_quality("x", {"psnr": None, "psnr_mean_color": 19.9}) == ()  # every image is exact


def test_the_table_says_what_the_json_says(run, photos, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main([*EVAL, run, photos, "--size", "[32, 48]"]) == 0
    table = capsys.readouterr().out
    result = evaluate(EvaluateConfig(run=run, data=photos, judges=(), size=(32, 48)))
    assert "3 images" in table
    assert "32 x 48" in table
    assert f"{result.quality['psnr']:.2f} dB" in table
    assert f"{result.quality['ssim']:.4f}" in table
    for grid, scale in zip(("2x3", "4x6", "8x12"), result.usage.scales, strict=True):
        (row,) = [line for line in table.splitlines() if f" {grid} " in line]
        cells = [cell.strip() for cell in row.split("│")]
        assert str(scale.tokens) in cells
        assert str(scale.used_codes) in cells
        assert f"{scale.perplexity:.1f}" in cells
        assert f"{scale.entropy_bits:.3f}" in cells
    assert "1 file could not be read" in table
    assert "[bold]broken.png" in table  # a file name is not markup


def test_collapse_has_its_own_exit_code_only_when_asked(run, collapsed_run, photos, capsys):
    assert main([*EVAL, run, photos, "--size", "32", "--fail-on-collapse"]) == 0
    assert main([*EVAL, collapsed_run, photos, "--size", "32"]) == 0
    assert "collapsed: scale 2 (8x8) used a single code" in capsys.readouterr().out
    assert main([*EVAL, collapsed_run, photos, "--size", "32", "--json", "--fail-on-collapse"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out)["collapsed"] is True
    assert "collapsed: scale 2 (8x8) used a single code" in printed.err


def test_min_usage_decides(run, photos, capsys):
    used = evaluate(EvaluateConfig(run=run, data=photos, judges=(), size=32)).usage.total.usage
    assert 0 < used < 1
    call = [*EVAL, run, photos, "--size", "32", "--json", "--fail-on-collapse", "--min_usage"]
    assert main([*call, str(used - 0.01)]) == 0
    assert main([*call, str(used + 0.01)]) == 3


def test_an_existing_file_is_kept_unless_forced(run, photos, tmp_path, capsys):
    out = tmp_path / "result.json"
    out.write_text("precious")
    assert main([*EVAL, run, photos, "--out", str(out)]) == 2
    assert out.read_text() == "precious"
    assert main([*EVAL, run, photos, "--out", str(out), "--force"]) == 0
    assert json.loads(out.read_text())["images"] == 3
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "DATA"),
        (["RUN"], "DATA"),
        (["/nowhere/run", "PHOTOS"], "/nowhere/run"),
        (["RUN", "/nowhere/photos"], "/nowhere/photos"),
        (["RUN", "PHOTOS", "--batch_size", "0"], "batch_size"),
        (["RUN", "PHOTOS", "--size", "huge"], "size"),
        (["RUN", "PHOTOS", "--fail-on-colapse"], "fail_on_collapse"),
        (["RUN", "PHOTOS", "--out", "/nowhere/result.json"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line_and_code_2(run, photos, arguments, complaint, capsys):
    named = [{"RUN": run, "PHOTOS": photos}.get(word, word) for word in arguments]
    assert main(["eval", *named]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("smalti eval: error: ")
    assert printed.err.count("\n") == 1
    assert complaint in printed.err


def test_a_closed_pipe_and_a_missing_torchvision_do_no_harm(run, photos):
    """In a fresh process in which torchvision cannot be imported, and whose reader leaves at once."""
    script = "import sys; sys.modules['torchvision'] = None; from smalti.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, *EVAL, run, photos, "--size", "32", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
