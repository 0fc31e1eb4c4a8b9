"""`smalti` itself: what it imports, what it says about mistakes, and how it ends."""

import os
import subprocess
import sys
import types

import pytest

from smalti import __version__
from smalti.cli import COMMANDS, describe, main, module_of

HEAVY = {"torch", "numpy", "jsonargparse", "rich", "yaml", "PIL", "tensorboard", "huggingface_hub"}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], [], ["--version"], ["trian"]])
def test_nothing_heavy_is_imported_before_a_command_is_chosen(arguments):
    code = f"import sys; from smalti.cli import main; main({arguments!r}); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & HEAVY


FAULTS = """
import resource, sys
from smalti.cli import main
sys.argv = ["smalti", "--version"]
main()
def batch():
    block = bytearray(2**26)  # written to, like features
    block[:] = bytes(1) * 2**26
faults = []
for _ in range(4):
    batch()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.parametrize(("setting", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, False)])
def test_memory_that_was_freed_is_used_again_unless_the_user_decides(setting, kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | setting)
    cleared_anew = int(done.stdout.splitlines()[-1]) > 3 * 2**26 // 4096 // 2  # of the pages of three batches
    assert cleared_anew is not kept


WAITING = """
import os, sys
from smalti.cli import main
sys.argv = ["smalti", "--version"]
main()
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({}, "1000 None False"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE False"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None False"),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_decides(setting, found):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | setting)
    assert done.stdout.splitlines()[-1] == found


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_every_command(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for verb, line in COMMANDS.items():
        assert f"  {verb} " in text
        assert line in text


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"smalti {__version__}\n"


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [("trian", "'train'"), ("Eval", "'eval'"), ("reconstrcut", "'reconstruct'"), ("--hlep", "'--help'"), ("zzz", None)],
)
def test_unknown_commands_are_one_line_with_the_nearest_one(argument, suggestion, capsys):
    assert main([argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert argument in err
    assert ("did you mean" in err) is (suggestion is not None)
    assert suggestion is None or suggestion in err


class DivergedError(ValueError):
    exit_code = 4


@pytest.fixture
def verb(monkeypatch):
    """Let `smalti train` do what a test wants."""

    def install(run):
        monkeypatch.setitem(sys.modules, "smalti.cli.train", types.SimpleNamespace(run=run))

    return install


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("size: got 0,\n  expected at least 1"), 2, "smalti train: error: size: got 0, expected at least 1"),
        (
            FileNotFoundError(2, "No such file or directory", "a.png"),
            2,
            "smalti train: error: a.png: No such file or directory",
        ),
        (FileExistsError("out: runs/a holds a run"), 2, "smalti train: error: out: runs/a holds a run"),
        (OSError(28, "No space left on device"), 2, "smalti train: error: [Errno 28] No space left on device"),
        (DivergedError("l1 became nan"), 4, "smalti train: error: l1 became nan"),
        (ValueError(), 2, "smalti train: error: ValueError"),
        (KeyboardInterrupt(), 130, "smalti train: interrupted"),
    ],
)
def test_errors_of_a_command_are_one_line_and_an_exit_code(verb, capsys, error, code, line):
    def run(arguments):
        raise error

    verb(run)
    assert main(["train"]) == code
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"),
    ],
)
def test_a_size_that_no_memory_holds_is_the_users_mistake(verb, capsys, error):
    def run(arguments):
        raise error

    verb(run)
    assert main(["train"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("smalti train: error: not enough memory")


def test_a_fault_of_ours_is_two_lines_and_a_traceback_only_where_asked_for(verb, capsys, monkeypatch):
    def run(arguments):
        raise TypeError("two\nlines")

    verb(run)
    monkeypatch.delenv("SMALTI_TRACEBACK", raising=False)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "smalti train: error: TypeError: two lines",
        "smalti train: this is a bug in smalti; set SMALTI_TRACEBACK=1 to see where it happened",
    ]
    monkeypatch.setenv("SMALTI_TRACEBACK", "1")
    with pytest.raises(TypeError, match="two"):
        main(["train"])


def test_arguments_and_exit_code_pass_through(verb):
    seen = []

    def run(arguments):
        seen.extend(arguments)
        return 7

    verb(run)
    assert main(["train", "--a", "--b=c"]) == 7
    assert seen == ["--a", "--b=c"]


def test_a_reader_that_leaves_is_no_error():
    code = "from smalti.cli import main; import sys; sys.exit(main(['train', '--help']))"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer.stdout.close()
    error = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait() == 0
    assert error == ""


def test_every_command_has_its_module():
    from importlib.util import find_spec

    for verb in COMMANDS:
        assert find_spec(module_of(verb)), verb


def test_arguments_of_python_are_spelled_as_options() -> None:
    message = "t exists; replace it with force=True or name codec=FILE, but a=1 and A=B and 'family=x' stay"
    spelled = "t exists; replace it with --force or name --codec FILE, but a=1 and A=B and 'family=x' stay"
    assert describe(ValueError(message)) == spelled
