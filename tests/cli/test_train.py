"""`smalti train` as a person runs it: a process, a terminal's Ctrl-C, exit codes."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from smalti.cli import main
from smalti.cli import train as train_verb
from smalti.cli.parsing import parse_config
from smalti.jobs.train import TrainConfig, build_model, plain_settings
from smalti.training import read_log
from smalti.zoo import load

RECIPE = {
    "model": "simple",
    "model_args": {"hidden_dim": 8, "vocab_size": 16},
    "input": {"size": 16},
    "optimization": {"steps": 3, "batch_size": 2, "warmup_steps": 1},
    "precision": "fp32",
    "log_every": 1,
}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    for n in range(3):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
            folder / f"{n}.png"
        )
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_from_photos_to_a_model_that_loads(photos, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(photos), "--out", str(run), "--config", str(recipe), "--optimization.lr", "1e-3"]) == 0
    out, err = capsys.readouterr()
    assert f"smalti eval {run} {shlex.quote(str(photos))}" in out
    assert "skipped 1 of 4 images: bad.jpg" in err
    assert "step 3/3" in err
    assert load(run).vocab_size == 16
    settings = yaml.safe_load((run / "train.yaml").read_text())
    assert settings["optimization"]["lr"] == 1e-3
    assert settings["optimization"]["steps"] == 3


def test_the_recorded_settings_are_a_recipe(photos, recipe, tmp_path):
    run = tmp_path / "run"
    main(["train", str(photos), "-o", str(run), "--config", str(recipe)])
    config = parse_config(TrainConfig, ["--config", f"{run}/train.yaml"], prog="x")
    assert plain_settings(config) == yaml.safe_load((run / "train.yaml").read_text())


def test_resume_takes_what_is_not_given_from_the_run(photos, recipe, tmp_path, capsys):
    """No default of the model, of which the run knows nothing; fewer steps than are done are refused."""
    run = tmp_path / "run"
    assert main(["train", str(photos), "-o", str(run), "--config", str(recipe)]) == 0
    settings = (run / "train.yaml").read_text()
    assert main(["train", str(photos), "-o", str(run), "--resume"]) == 0
    assert (run / "train.yaml").read_text() == settings
    assert main(["train", f"--out={run}", "--resume", "--optimization.steps", "4"]) == 0
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4]
    capsys.readouterr()
    assert main(["train", str(photos), "--out", str(run), "--resume", "--optimization.steps", "3"]) == 2
    assert "steps: got 3, expected at least 4" in capsys.readouterr().err
    assert main(["train", str(photos), "--out", str(run), "--resume", "--input.size", "8"]) == 2
    assert "input: got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "missing DATA, --out"),
        (["photos"], "missing --out"),
        (["nowhere", "--out", "run"], "nowhere"),
        (["photos", "--out", "run", "--optimisation.lr", "1"], "did you mean '--optimization.lr'?"),
        (["photos", "--out", "run", "--optimization.lr", "fast"], "--optimization.lr: got fast, expected a number"),
        (["photos", "--out", "run", "--optimization.lr", "-1"], "lr: got -1.0"),
        (["photos", "--out", "run", "--input.crop", "middle"], "expected one of random, center"),
        (["photos", "--out", "run", "--precision", "fp8"], "expected one of auto, fp32, bf16, fp16"),
        (["photos", "--out", "run", "--loss_weights.l3", "1"], "l3"),
        (["photos", "--out", "photos"], "not a run directory"),
        (["photos", "--out", "photos", "--force"], "not a run directory"),
        (["photos", "--out", "run", "--resume"], "no run to resume"),
        (["photos", "--out", "run", "--resume", "--force"], "expected one"),
        (["photos", "--out", "run", "--device", "toaster"], "device: got 'toaster'"),
        (["empty", "--out", "run"], "empty"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(photos, tmp_path, monkeypatch, capsys, arguments, part):
    photos.rename(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("smalti train: error: ")
    assert err.count("\n") == 1
    assert part in err
    assert not (tmp_path / "run").exists()


def test_a_diverging_loss_has_its_own_exit_code(photos, recipe, tmp_path, capsys):
    wild = ["--optimization.lr", "1e30", "--optimization.grad_clip", "1e30", "--optimization.steps", "50"]
    assert main(["train", str(photos), "-o", str(tmp_path / "run"), "--config", str(recipe), *wild]) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("smalti train: error: ")
    assert " at step " in last
    assert ".png" in last


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from smalti.cli import main

def press_ctrl_c(log=Path(sys.argv[1], "log.jsonl")):
    while not log.exists() or log.read_text().count("\\n") < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press_ctrl_c, daemon=True).start()
sys.exit(main(["train", "--out", *sys.argv[1:]]))
"""


def test_ctrl_c_leaves_a_usable_run_and_says_how_to_go_on(photos, recipe, tmp_path, clean):
    run = tmp_path / "my run"
    done = clean.run("-c", INTERRUPTED, run, photos, "--config", recipe, "--optimization.steps", "100000")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    step = int(sorted(path.name for path in os.scandir(run / "checkpoints"))[-1])
    assert f"stopped after step {step} of 100000" in done.stdout
    load(run)
    told = shlex.split(done.stdout.splitlines()[-1].partition("continue with: ")[2])
    assert told[0] == "smalti"
    assert main([*told[1:], "--optimization.steps", str(step + 2)]) == 0
    steps = [line["step"] for line in read_log(run)]
    assert steps == list(range(1, step + 3))


IN_A_TERMINAL = """
import os, pty, sys
from smalti.cli import main

process, terminal = pty.fork()
if not process:
    os.environ |= {"TERM": "xterm", "COLUMNS": "120"}
    sys.exit(main(sys.argv[1:]))
while True:
    try:
        sys.stdout.buffer.write(os.read(terminal, 4096))
    except OSError:  # Linux's way to say that the other side has closed
        break
sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


def test_terminal_gets_a_bar(photos, recipe, tmp_path, clean):
    """Through a pseudo-terminal, where the system has one."""
    pytest.importorskip("pty")
    done = clean.run("-c", IN_A_TERMINAL, "train", photos, "--out", tmp_path / "r", "--config", recipe)
    assert done.returncode == 0, done.stdout
    for part in ("3/3", "loss ", "PSNR ", "usage ", "images/s", "left"):
        assert part in done.stdout, part


RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    if "not trained by us" not in path.read_text()  # those are for GPUs: tests/jobs/test_presets.py
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_its_model_fits_its_images(path):
    import torch

    from smalti.losses import LossTable
    from smalti.quantizers import MultiScaleQuantizer

    config = train_verb.parse(["--data=x", "--out=y", f"--config={path}"])
    changed = yaml.safe_load(path.read_text())
    recorded = plain_settings(config)
    for key, value in changed.items():
        kept = recorded[key] if not isinstance(value, dict) else {k: recorded[key][k] for k in value}
        assert kept == value or key == "data"
    model = build_model(config)[0].eval()
    height, width = config.input.height_width
    image = torch.zeros(1, model.image_channels, height, width)
    with torch.no_grad():
        output = model(image)
    assert LossTable(config.loss_weights)(image, output).total.isfinite()
    if isinstance(model.quantizer, MultiScaleQuantizer):
        assert height == width == model.quantizer.patch_nums[-1] * model.stride


PRIOR_RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "priors").glob("*.yaml"))


@pytest.mark.parametrize("path", PRIOR_RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_a_prior_parses_and_models_the_tokens_of_its_tokenizer(path):
    """The tokenizer of recipes/NAME.yaml makes the tokens of recipes/priors/NAME.yaml."""
    import torch

    from smalti.jobs.train_prior import TrainPriorConfig
    from smalti.priors import TokenLayout
    from smalti.zoo import build_prior

    tokenizer_recipe = path.parent.parent / path.name
    config = train_verb.parse(["--data=x", "--out=y", f"--config={tokenizer_recipe}"])
    tokenizer = build_model(config)[0].eval()
    image = torch.zeros(2, tokenizer.image_channels, *config.input.height_width)
    tokens = tokenizer.encode(image)
    recipe = parse_config(TrainPriorConfig, ["--tokens=x", "--out=y", f"--config={path}"], prog="smalti train-prior")
    layout = TokenLayout.of(tokenizer.vocab_size, tokens.grids, config.input.height_width)
    prior = build_prior(recipe.prior, layout, 10, tokenizer.quantizer, **recipe.prior_args)
    with torch.no_grad():
        assert prior.loss(tokens.flatten(), torch.tensor([0, 9])).isfinite()


def test_there_are_recipes():
    assert PRIOR_RECIPES
    assert {"simple-64", "multi-scale-64", "multi-scale-128", "fashion-mnist"} <= {path.stem for path in RECIPES}
