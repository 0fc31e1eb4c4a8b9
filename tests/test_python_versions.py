"""Newer versions of Python than the one that runs the tests: what of the package needs no torch works there, too.

Interpreters are looked for on the path and in pyenv. They need no packages: the modules under test are loaded without
those that need some.
"""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "smalti"
VERSIONS = ((3, 11), (3, 12), (3, 13), (3, 14))
"""Those that pyproject.toml allows."""


@cache
def interpreter(version: tuple[int, int]) -> str | None:
    """A Python of that version on this machine."""
    name = f"python{version[0]}.{version[1]}"
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version[0]}.{version[1]}.*/bin/{name}"))
    candidates = [sys.executable] * (sys.version_info[:2] == version) + [str(path) for path in pyenv[-1:]]
    return next(iter([*candidates, *filter(None, [shutil.which(name)])]), None)


def run(version: tuple[int, int], code: str, *arguments: str) -> str:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version[0]}.{version[1]} on this machine")
    command = [python, "-I", "-W", "error", "-c", code, str(SOURCE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: ".".join(map(str, version)))

COMPILE = """
import pathlib, sys
for path in pathlib.Path(sys.argv[1]).rglob("*.py"):
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
"""

WITHOUT_PACKAGES = """
import sys, types
from pathlib import Path
source, work = map(Path, sys.argv[1:])
for name in ("smalti", "smalti.formats", "smalti.training"):  # rooms without what their __init__ imports
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(source.joinpath(*name.split(".")[1:]))]
for name in ("yaml", "smalti.training.checkpoint", "smalti.training.state"):  # what needs packages
    sys.modules[name] = types.ModuleType(name)
sys.modules["yaml"].SafeDumper = type("SafeDumper", (), {"add_representer": classmethod(lambda *_: None)})
sys.modules["yaml"].ScalarNode = object
names = ("deliver", "check_whole", "remove_leftovers", "save_checkpoint", "sort_checkpoints", "TrainingState")
for name in (*names, "AVERAGED", "CONFIG"):
    for module in ("checkpoint", "state"):
        setattr(sys.modules["smalti.training." + module], name, lambda *_: None)
"""

NEW_RUN = (
    WITHOUT_PACKAGES
    + """
from smalti.training.run_folder import RunFolder
from smalti.formats.sealed_json import open_sealed, seal
from smalti.formats.atomic import replace_file, replace_folder
folder = RunFolder(work / "deep" / "run")
folder.check_new(force=False)
folder.clear()
folder.check_new(force=False)
folder.tidy()
for n in range(2):
    with replace_file(folder.path / "a.json", force=True) as path:
        path.write_bytes(seal("kind", 1, {"n": n}))
    with replace_folder(folder.path / "b", force=True) as path:
        (path / "c").write_text("c")
assert open_sealed((folder.path / "a.json").read_bytes(), "kind", 1) == (1, {"n": 1})
try:
    folder.check_new(force=False)
except FileExistsError as error:
    assert "is not a run directory" in str(error)
else:
    raise AssertionError
"""
)

HELP = (
    WITHOUT_PACKAGES
    + """
from smalti.cli import main
assert main(["--help"]) == 0
assert main(["trian"]) == 2
"""
)


@EVERY_VERSION
def test_every_file_compiles_without_a_warning(version: tuple[int, int]) -> None:
    run(version, COMPILE)


@EVERY_VERSION
def test_a_new_run_folder_is_made(version: tuple[int, int], tmp_path: Path) -> None:
    run(version, NEW_RUN, str(tmp_path))


@EVERY_VERSION
def test_the_command_line_answers(version: tuple[int, int], tmp_path: Path) -> None:
    assert "smalti COMMAND" in run(version, HELP, str(tmp_path))
