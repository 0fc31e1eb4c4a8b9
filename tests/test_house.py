"""The house keeps its order: what an import may do, sizes, names and docstrings.

This file holds what `make check` cannot see. That checks floors (import-linter), broad exceptions, `eval`, numbers of
arguments and most docstrings (ruff).
"""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smalti

SOURCE = Path(__file__).resolve().parent.parent / "src" / "smalti"

LONGER_THAN_400_LINES: dict[str, str] = {}
LONGER_THAN_60_LINES: dict[str, str] = {}
"""Exceptions to the sizes, each with the sentence that says why ("path" or "path:name")."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files() -> dict[str, Path]:
    return {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}


MODULES = files()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)


# ---- what an import does ---------------------------------------------------------------------------------------------


def run(code: str) -> dict:
    """What a fresh interpreter prints as JSON, with every warning an error."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_importing_smalti_imports_nothing_heavy() -> None:
    loaded = run(
        "import json, sys, smalti; dir(smalti); smalti.__version__; print(json.dumps(dict.fromkeys(sys.modules)))"
    )
    assert set(loaded).isdisjoint(
        {"torch", "numpy", "PIL", "jaxtyping", "huggingface_hub", "torchmetrics", "yaml", "rich"}
    )
    assert [name for name in loaded if name.startswith("smalti")] == ["smalti"]


STATE = """
import json, logging, random, sys, warnings, locale, os, signal
import numpy, torch
def state():
    return {
        "filters": repr(warnings.filters), "handlers": repr(logging.getLogger().handlers),
        "level": logging.getLogger().level, "disabled": logging.root.manager.disable,
        "torch seed": torch.initial_seed(), "torch": torch.random.get_rng_state().sum().item(),
        "numpy": repr(numpy.random.get_state()), "python": repr(random.getstate()),
        "threads": torch.get_num_threads(), "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()), "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": repr((torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())),
        "benchmark": torch.backends.cudnn.benchmark, "hook": repr(sys.excepthook),
        "interrupt": repr(signal.getsignal(signal.SIGINT)), "environment": dict(os.environ),
    }
"""


def test_importing_every_room_has_no_effect() -> None:
    """No seed, no warning filter, no logging set-up, no torch global. Other packages' effects are taken out first."""
    modules = [
        "smalti." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in MODULES
        if name != "__init__.py" and not name.endswith("__main__.py")
    ]
    outside = sorted(
        {
            (alias.name if isinstance(node, ast.Import) else node.module or "")
            for tree in TREES.values()
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if not (alias.name if isinstance(node, ast.Import) else node.module or "smalti").startswith("smalti")
        }
    )
    changed = run(
        STATE + f"import importlib\nfor name in {outside!r}: importlib.import_module(name)\nbefore = state()\n"
        f"for name in {modules!r}: importlib.import_module(name)\nafter = state()\n"
        "print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))"
    )
    assert changed == {}


def test_every_public_name_can_be_imported() -> None:
    for name in smalti.__all__:
        assert inspect.getdoc(getattr(smalti, name)), name
    assert set(smalti.__all__) <= set(dir(smalti))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = smalti.nothing_of_the_kind


# ---- names, sizes, docstrings ----------------------------------------------------------------------------------------


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Classes, functions and methods with their dotted names; not what is local to a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, prefix + node.name + ".")


CLASSES = {n.name: n for tree in TREES.values() for _, n in definitions(tree) if isinstance(n, ast.ClassDef)}


def said_by_a_base(cls: ast.ClassDef, method: str) -> bool:
    """Whether a base class within the package documents the method that `cls` fills in."""
    bases = [CLASSES[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    own = [n for base in bases for n in base.body if isinstance(n, ast.FunctionDef) and n.name == method]
    return any(ast.get_docstring(n) for n in own) or any(said_by_a_base(base, method) for base in bases)


@EVERY_MODULE
def test_every_public_method_has_a_docstring(name: str) -> None:
    for dotted, node in definitions(TREES[name]):
        if any(part.startswith("_") for part in dotted.split(".")):
            continue
        owner = CLASSES.get(dotted.split(".")[-2]) if "." in dotted else None
        assert ast.get_docstring(node) or (owner and said_by_a_base(owner, node.name)), f"{name}: {dotted}"


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


@EVERY_MODULE
def test_every_field_of_a_dataclass_has_a_sentence(name: str) -> None:
    """Below the field or under "Attributes:"; it becomes --help and the documentation."""
    for dotted, node in definitions(TREES[name]):
        if not isinstance(node, ast.ClassDef) or not is_dataclass(node) or node.name.startswith("_"):
            continue
        for field, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                below = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                listed = f"{ast.unparse(field.target)}:" in (ast.get_docstring(node) or "").partition("Attributes:")[2]
                assert below or listed, f"{name}: {dotted}.{ast.unparse(field.target)}"


@EVERY_MODULE
def test_configs_are_frozen(name: str) -> None:
    for dotted, node in definitions(TREES[name]):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            assert "frozen=True" in "".join(map(ast.unparse, node.decorator_list)), f"{name}: {dotted}"


@EVERY_MODULE
def test_sizes(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= 400 or name in LONGER_THAN_400_LINES, f"{name} has {lines} lines"
    for dotted, node in definitions(TREES[name]):
        where = f"{name}:{dotted}"
        if isinstance(node, ast.ClassDef):
            continue
        length = (node.end_lineno or 0) - node.lineno + 1
        assert length <= 60 or where in LONGER_THAN_60_LINES, f"{where} has {length} lines"


@EVERY_MODULE
def test_names(name: str) -> None:
    stem = name.split("/")[-1].removesuffix(".py")
    assert stem not in {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not stem.endswith(("_v2", "v2", "_new", "_old"))
    for dotted, _ in definitions(TREES[name]):
        assert not dotted.endswith("V2"), f"{name}: {dotted}"


# ---- habits ----------------------------------------------------------------------------------------------------------


@EVERY_MODULE
def test_pickles_are_read_without_their_code(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"{name}:{node.lineno}"


def test_bases_are_abstract_and_leaves_are_final() -> None:
    from smalti.priors import Prior
    from smalti.quantizers import Quantizer
    from smalti.tokenizers import Tokenizer

    for room in ("quantizers", "tokenizers", "priors"):
        for module in pkgutil.iter_modules([str(SOURCE / room)]):
            importlib.import_module(f"smalti.{room}.{module.name}")

    def below(cls: type) -> Iterator[type]:
        for child in cls.__subclasses__():
            if child.__module__.startswith("smalti"):
                yield child
                yield from below(child)

    for base in (Quantizer, Tokenizer, Prior):
        assert inspect.isabstract(base)
        for cls in below(base):
            assert inspect.isabstract(cls) or getattr(cls, "__final__", False), cls
