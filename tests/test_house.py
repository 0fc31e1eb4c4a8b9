"""The house keeps its order: which room may import which, what an import may do, sizes, names and docstrings.

Rooms stand on floors; imports go strictly downward, and no room hides an import in a function to dodge the rule.
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

FLOORS = {
    "checks": 0, "ops": 0, "formats": 0,
    "blocks": 1, "quantizers": 1,
    "tokenizers": 2, "priors": 2, "losses": 2, "metrics": 2, "data": 2,
    "zoo": 3,
    "training": 4, "codec": 4,
    "jobs": 5,
    "playground": 6,
    "cli": 7,
}  # fmt: skip

DYNAMIC_IMPORTS = {
    "__init__.py": "the public names are imported when first used",
    "cli/__init__.py": "a verb's module, in its own room, is imported when that verb is chosen",
}
"""The only modules that may import by name, each with its reason."""

BROAD_EXCEPTIONS = {
    "cli/__init__.py": "the last place that can say any fault in words instead of a traceback",
    "ops/nearest.py": "a compiler, a driver and a GPU may fail in any way, and plain torch serves as well",
}
"""The only modules that may catch every exception, each with its reason."""

LONGER_THAN_400_LINES: dict[str, str] = {}
LONGER_THAN_60_LINES: dict[str, str] = {}
KERNEL = "a GPU kernel takes every pointer, stride and size by itself"
MORE_THAN_10_ARGUMENTS: dict[str, str] = {
    "tokenizers/simple.py:SimpleVQVAE.__init__": "one flat list of what a learner may change",
    **{f"ops/triton_search.py:{name}": KERNEL for name in ("describe", "search", "search_float64")},
}
"""Exceptions to the sizes, each with the sentence that says why ("path" or "path:name")."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files() -> dict[str, Path]:
    return {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}


MODULES = files()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)


def room_of(parts: list[str]) -> str | None:
    """The room of ["smalti", room, ...]; None for the package itself."""
    return parts[1].removesuffix(".py") if len(parts) > 1 and parts[1] != "__init__.py" else None


def imported_rooms(name: str, tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every room that a module imports, wherever in the module the import stands."""
    package = ["smalti", *name.split("/")[:-1]]
    for node in ast.walk(tree):
        targets: list[list[str]] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets = [[*base, alias.name] for alias in node.names] if base == ["smalti"] else [base]
        for target in targets:
            if target[0] == "smalti" and len(target) > 1 and target[1] != "__version__":
                # `from smalti import Tokens` reaches the room that Tokens lives in.
                home = smalti._HOMES.get(target[1], "smalti." + target[1])
                yield home.split(".")[1], node


def floor_violations(name: str, tree: ast.AST) -> list[str]:
    """What a module imports although it may not."""
    own = room_of(["smalti", *name.split("/")])
    found = []
    for room, node in imported_rooms(name, tree):
        if own is None:
            found.append(f"{name}:{node.lineno} the package itself imports {room}")
        elif room != own and (room not in FLOORS or FLOORS[room] >= FLOORS[own]):
            found.append(f"{name}:{node.lineno} {own} imports {room}")
        elif room != own and node.col_offset > 0 and not is_at_top(tree, node):
            found.append(f"{name}:{node.lineno} the import of {room} hides in a function")
    return found


def is_at_top(tree: ast.AST, node: ast.stmt) -> bool:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    return not any(inner is node for function in functions for inner in ast.walk(function))


# ---- rooms -----------------------------------------------------------------------------------------------------------


@EVERY_MODULE
def test_imports_go_strictly_downward(name: str) -> None:
    assert floor_violations(name, TREES[name]) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ops/a.py", "from smalti.quantizers import VectorQuantizer"),
        ("ops/a.py", "import smalti.formats.atomic"),
        ("ops/a.py", "from smalti import formats"),
        ("ops/a.py", "from smalti import VectorQuantizer"),
        ("ops/a.py", "from ..formats import atomic"),
        ("ops/a.py", "from .. import formats"),
        ("quantizers/a.py", "from smalti.blocks.convolutional import ConvEncoder"),
        ("losses/a.py", "def f():\n    from smalti.tokenizers import Tokens"),
        ("jobs/a.py", "def f():\n    from smalti.tokenizers import Tokens"),
        ("jobs/a.py", "import torch, smalti.cli"),
        ("zoo.py", "from smalti.training import loop"),
        ("__init__.py", "from smalti.ops import nearest_code"),
    ],
)
def test_the_check_of_imports_sees_each_kind_of_violation(name: str, text: str) -> None:
    assert len(floor_violations(name, ast.parse(text))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "quantizers/a.py",
            "from smalti.ops import nearest_code\nfrom smalti.quantizers.base import Quantizer\nfrom .b import c",
        ),
        ("cli/train.py", "from smalti.jobs.train import train\nfrom smalti import __version__\nimport torch"),
        ("jobs/a.py", "def f():\n    import skimage"),
        ("training/a.py", "from smalti import Tokens"),
    ],
)
def test_the_check_of_imports_lets_the_rest_pass(name: str, text: str) -> None:
    assert floor_violations(name, ast.parse(text)) == []


@EVERY_MODULE
def test_every_module_lives_in_a_room(name: str) -> None:
    assert name == "__init__.py" or name.split("/")[0].removesuffix(".py") in FLOORS


@EVERY_MODULE
def test_nothing_is_imported_by_name(name: str) -> None:
    if name in DYNAMIC_IMPORTS:
        return
    called = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert called.isdisjoint({"import_module", "__import__"})


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


def test_torchvision_is_never_imported() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert "torchvision" not in {module.split(".")[0] for module in modules}, name


# ---- names, sizes, docstrings ----------------------------------------------------------------------------------------


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Classes, functions and methods with their dotted names; not what is local to a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, prefix + node.name + ".")


@EVERY_MODULE
def test_every_module_says_what_it_is(name: str) -> None:
    docstring = ast.get_docstring(TREES[name])
    assert docstring, name
    assert docstring.split("\n")[0].rstrip().endswith((".", "!", "?", ":", "…")) or "\n" in docstring


CLASSES = {n.name: n for tree in TREES.values() for _, n in definitions(tree) if isinstance(n, ast.ClassDef)}


def said_by_a_base(cls: ast.ClassDef, method: str) -> bool:
    """Whether a base class within the package documents the method that `cls` fills in."""
    bases = [CLASSES[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    own = [n for base in bases for n in base.body if isinstance(n, ast.FunctionDef) and n.name == method]
    return any(ast.get_docstring(n) for n in own) or any(said_by_a_base(base, method) for base in bases)


@EVERY_MODULE
def test_everything_public_has_a_docstring(name: str) -> None:
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
        arguments = [a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg != "self"]
        assert len(arguments) <= 10 or where in MORE_THAN_10_ARGUMENTS, f"{where} has {len(arguments)} arguments"


@EVERY_MODULE
def test_names(name: str) -> None:
    stem = name.split("/")[-1].removesuffix(".py")
    assert stem not in {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not stem.endswith(("_v2", "v2", "_new", "_old"))
    for dotted, _ in definitions(TREES[name]):
        assert not dotted.endswith("V2"), f"{name}: {dotted}"


# ---- habits ----------------------------------------------------------------------------------------------------------


@EVERY_MODULE
def test_habits(name: str) -> None:
    """No broad except, no eval or exec, no unsafe pickle, no postponed annotations, nothing left to do."""
    text = MODULES[name].read_text(encoding="utf-8")
    for node in ast.walk(TREES[name]):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            caught = [] if node.type is None else [ast.unparse(t) for t in getattr(node.type, "elts", [node.type])]
            assert caught, where
            assert {"Exception", "BaseException"}.isdisjoint(caught) or name in BROAD_EXCEPTIONS, where
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            assert function not in {"eval", "exec", "pickle.load", "pickle.loads"}, where
            if function == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", where
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            assert "annotations" not in {alias.name for alias in node.names}, where
    for word in ("TO" + "DO", "FIX" + "ME", "X" * 3 + " "):
        assert word not in text, f"{name} contains {word}"


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
