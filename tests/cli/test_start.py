"""The start of a command: what is not imported, and what is refused before torch is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.cli import main
from smalti.cli.counted import counted
from smalti.cli.missing_file import FLAGS, NAMES, refuse_missing_file
from smalti.cli.parsing import option_types
from smalti.cli.tokenize import TokenizeCommand
from smalti.jobs.decode import DecodeConfig
from smalti.jobs.encode import EncodeConfig
from smalti.jobs.reconstruct import ReconstructConfig
from smalti.jobs.train import TrainConfig
from smalti.jobs.train_prior import TrainPriorConfig
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import BOXED

NOT_NEEDED = {
    "accelerate", "datasets", "fsspec", "huggingface_hub", "matplotlib", "pyarrow", "rich", "scipy", "tensorboard",
    "torchmetrics", "torchvision",
}  # fmt: skip
"""Packages that neither encode, decode nor reconstruct has a use for."""

AFTER = """
import sys
from smalti.cli import main
from smalti.cli.counted import counted
codes = [main(line.split()) for line in sys.argv[1:]]
print(codes, *sorted({name.partition(".")[0] for name in sys.modules} | {n for n in sys.modules if "smalti." in n}))
"""


def after(*lines: str, folder: Path) -> tuple[str, set[str]]:
    """The exit codes of commands that one new process runs, and the modules that it then holds."""
    command = [sys.executable, "-c", AFTER, *lines]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    codes, _, names = done.stdout.splitlines()[-1].partition("] ")
    return codes + "]", set(names.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer, `run`, and a picture."""
    torch.manual_seed(0)
    SimpleVQVAE(8, 4, 4).save_pretrained(tmp_path / "run")
    Image.new("RGB", (8, 8), (200, 30, 60)).save(tmp_path / "red.png")
    return tmp_path


def test_there_and_back_imports_nothing_that_it_does_not_use(folder: Path) -> None:
    lines = "encode run red.png -o t.tokens", "decode run t.tokens b.png", "reconstruct run red.png c.png"
    codes, loaded = after(*lines, folder=folder)
    assert codes == "[0, 0, 0]"
    assert "torch" in loaded
    assert not loaded & (NOT_NEEDED | {"smalti.training", "smalti.losses"})


MISSING = [
    ("encode absent.png -o t.tokens", "absent.png"),
    ("encode run red.png absent.png --out=t.tokens --force", "absent.png"),
    ("encode --force true -o t.tokens run -- red.png absent.png", "absent.png"),
    ("decode absent.tokens b.png", "absent.tokens"),
    ("decode run absent.tokens -o b.png", "absent.tokens"),
    ("reconstruct absent.png c.png", "absent.png"),
    ("reconstruct --device cpu run absent.png c.png", "absent.png"),
]


TAKEN = [
    ("train absent --out new", "absent: no such file or folder"),
    ("train --input.flip absent -o new --optimization.steps 3", "absent: no such file or folder"),
    ("train-prior absent --out new --force", "absent: no such file or folder"),
    ("tokenize absent -o new --size 8", "absent: no such file or folder"),
    ("tokenize run absent --mirrored --out=new", "absent: no such file or folder"),
    ("train photos --out old", "out: old holds a run; continue it with --resume or replace it with --force"),
    ("train embedded --out photos", "out: photos exists and is not a run directory; choose another name"),
    ("train photos --out photos --force", "out: photos exists and is not a run directory; choose another name"),
    ("train-prior photos -o red.png", "out: red.png exists and is not a run directory; choose another name"),
    (
        "train-prior photos --sharded --out=old",
        "out: old holds a run; continue it with --resume or replace it with --force",
    ),
]


@pytest.fixture
def taken(folder: Path) -> Path:
    """Besides, a folder of pictures, `photos`, and a folder that looks like that of a run, `old`."""
    for name in ("photos/red.png", "old/train.yaml"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes((folder / "red.png").read_bytes())
    return folder


def test_a_missing_file_is_refused_before_torch_is_imported(taken: Path) -> None:
    lines = [line for line, _ in MISSING + TAKEN]
    codes, loaded = after(*lines, folder=taken)
    assert codes == str([2] * len(lines))
    assert not loaded & {"torch", "numpy", "PIL", "jsonargparse"}


@pytest.mark.parametrize(("line", "message"), TAKEN)
def test_a_training_that_cannot_begin_is_refused_at_once(taken, line, message, monkeypatch, capsys):
    monkeypatch.chdir(taken)
    verb, *rest = line.split()
    assert main([verb, *rest]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"smalti {verb}: error: {message}")
    assert error.count("\n") == 1
    monkeypatch.setenv("RANK", "0")  # of several processes; the command prints one message for all
    refuse_missing_file(verb, rest)


@pytest.mark.parametrize(
    "line",
    [
        "train photos --out new",
        "train photos --out run/none --force",
        "train photos --out old --resume",
        "train photos --out old --force",
        "train photos --out old --force false --config recipe.yaml",
        "train --data absent --out new",
        "train absent --out old --help",
        "train embedded:test --out new",
        "train shard-{0..3}.tar --out new",
        "train hf://owner/name --out new",
        "train-prior s3://bucket/tokens --out new",
        "tokenize user/model photos --out old",
        "tokenize photo-f8 --out new",
        "tokenize run absent more --out new",  # one too many
        "train-codec absent --out new",
    ],
)
def test_a_training_that_may_begin_is_left_to_the_command(taken, line, monkeypatch):
    monkeypatch.chdir(taken)
    verb, *rest = line.split()
    refuse_missing_file(verb, rest)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encode run photos -o t", "photos: is a folder, expected an image file; smalti tokenize takes folders"),
        ("reconstruct run photos a.png", "photos: is a folder, expected an image file; smalti tokenize takes folders"),
        ("decode run photos -o a.png", "photos: is a folder, expected a token file"),
        ("import run new", "checkpoint: got run, expected a published checkpoint; it already is a model of smalti"),
        ("import run/model.safetensors new", "checkpoint: got run/model.safetensors, expected a published checkpoint"),
        ("eval damaged photos", "damaged/train.yaml: not a recipe (while parsing"),
    ],
)
def test_what_is_of_another_kind_is_named(taken, line, message, monkeypatch, capsys):
    monkeypatch.chdir(taken)
    SimpleVQVAE(8, 4, 4).save_pretrained("damaged")
    Path("damaged/train.yaml").write_text("a: [", encoding="utf-8")
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"smalti {line.split()[0]}: error: {message}")
    assert error.count("\n") == 1
    assert "the file is damaged" in error or "damaged" not in line


def test_one_thing_is_counted_in_the_singular(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert main(["encode", "run", "red.png", "-o", "t.tokens"]) == 0
    assert "t.tokens: 1 image, " in capsys.readouterr().out
    assert main(["tokenize", "run", "red.png", "-o", "tokens", "--size", "2"]) == 0
    assert "tokens: 1 image, 1 row of 1 token; 1 of 1 shard written by this run" in capsys.readouterr().out
    assert main(["compare", "run", "red.png", "--judges", "[]", "--codecs", "[]"]) == 0
    assert capsys.readouterr().out.startswith("1 image of red.png")


def test_names_of_no_folder_are_known():
    assert set(BOXED) < NAMES


@pytest.mark.parametrize(("line", "name"), MISSING)
def test_the_command_itself_would_have_said_the_same(folder, line, name, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    verb = line.split()[0]
    assert main(line.split()) == 2
    early = capsys.readouterr().err
    assert early == f"smalti {verb}: error: {name}: No such file or directory\n"
    monkeypatch.setattr("smalti.cli.missing_file.FLAGS", {})
    assert main(line.split()) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "encode run red.png -o new.tokens",  # what is written need not be there
        "reconstruct run red.png new.png",
        "reconstruct red.png -o new.png",
        "decode red.png new.png --device x.y",
        "encode user/model.v2 red.png -o t",  # a name on the hub
        "encode absent",  # no file by its name: the box, a run or a picture
        "encode --images absent.png -o t",  # for the whole parser
        "encode absent.png --help",
        "decode run absent.tokens b.png c.png",  # one too many
    ],
)
def test_what_is_not_sure_is_left_to_the_command(folder, line, monkeypatch):
    monkeypatch.chdir(folder)
    verb, *rest = line.split()
    refuse_missing_file(verb, rest)


CONFIGS = {
    "encode": EncodeConfig,
    "decode": DecodeConfig,
    "reconstruct": ReconstructConfig,
    "train": TrainConfig,
    "train-prior": TrainPriorConfig,
    "tokenize": TokenizeCommand,
}


@pytest.mark.parametrize("verb", FLAGS)
def test_every_flag_is_known(verb):
    """An option that takes no value would else swallow the word after it."""
    assert {f"--{name}" for name, hint in option_types(CONFIGS[verb]).items() if hint is bool} == FLAGS[verb]
