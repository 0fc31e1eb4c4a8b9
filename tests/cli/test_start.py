"""The start of a command: what is not imported, and what is refused before torch is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from smalti.cli import main
from smalti.cli.missing_file import refuse_missing_file
from smalti.cli.parsing import option_types
from smalti.jobs.decode import DecodeConfig
from smalti.jobs.encode import EncodeConfig
from smalti.jobs.reconstruct import ReconstructConfig
from smalti.tokenizers import SimpleVQVAE

NOT_NEEDED = {
    "accelerate", "datasets", "fsspec", "huggingface_hub", "matplotlib", "pyarrow", "rich", "scipy", "tensorboard",
    "torchmetrics", "torchvision",
}  # fmt: skip
"""Packages that neither encode, decode nor reconstruct has a use for."""

AFTER = """
import sys
from smalti.cli import main
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


def test_a_missing_file_is_refused_before_torch_is_imported(folder: Path) -> None:
    codes, loaded = after(*(line for line, _ in MISSING), folder=folder)
    assert codes == str([2] * len(MISSING))
    assert not loaded & {"torch", "numpy", "PIL", "jsonargparse"}


@pytest.mark.parametrize(("line", "name"), MISSING)
def test_the_command_itself_would_have_said_the_same(folder, line, name, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    verb = line.split()[0]
    assert main(line.split()) == 2
    early = capsys.readouterr().err
    assert early == f"smalti {verb}: error: {name}: No such file or directory\n"
    monkeypatch.setattr("smalti.cli.missing_file.WRITTEN", {})
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
        "tokenize absent.png",
    ],
)
def test_what_is_not_sure_is_left_to_the_command(folder, line, monkeypatch):
    monkeypatch.chdir(folder)
    verb, *rest = line.split()
    refuse_missing_file(verb, rest)


@pytest.mark.parametrize("config", [EncodeConfig, DecodeConfig, ReconstructConfig])
def test_every_flag_is_known(config):
    """An option that takes no value would else swallow the word after it."""
    assert {name for name, hint in option_types(config).items() if hint is bool} == {"force"}
