"""What the documents say is true: both languages agree, the Python runs, the commands parse, the links lead somewhere.

A page is followed as a reader would, from top to bottom in one folder that holds what the pages speak of: `photos`,
`photo.jpg`, the run `runs/photos`, and what `make demo` leaves in `demo`. In that folder

- a ```python block runs, together with the blocks above it; `print(...)  # text` must print that text;
- a ```yaml block is a recipe of `smalti train` and is stored under the name in its first line;
- every `smalti ...` line of a ```bash block goes through the real parser; those of the README and of the tutorial run
  for real, with fewer steps.

The cells of the notebook run in the same way.
"""

import ast
import importlib
import itertools
import json
import re
import runpy
import shlex
import shutil
import struct
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import smalti.zoo.box
from smalti.cli import COMMANDS, main, module_of
from smalti.cli.parsing import parse_config
from smalti.data import open_images, save_image
from smalti.jobs.demo import TRAINING
from smalti.jobs.train import TrainConfig, build_model, train
from smalti.quantizers import QUANTIZERS
from smalti.training import OptimizationConfig

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs" / "en").rglob("*.md"))]
DOCUMENTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EVERY_PAGE = pytest.mark.parametrize("page", ENGLISH, ids=str)
TINY = ["--optimization.steps", "2", "--optimization.batch_size", "2"]
FOLLOWED = ("token-file.md", "tutorial.md")
"""Pages with commands that run for real, one after another."""
SHORTER = {
    "train": TINY,
    "tokenize": ["--crops", "1"],
    "train-prior": [*TINY, "--prior_args", "{depth: 1, width: 16, num_heads: 1}"],
    "sample": ["-n", "2"],
    "train-codec": ["--training.steps", "2"],
}
"""What makes a command of a page short."""

HAN = re.compile(r"[\u4e00-\u9fff]")


def mirror(page: Path) -> Path:
    """The Chinese page of an English one."""
    return Path("README.zh-CN.md") if page.name == "README.md" else Path("docs/zh", page.relative_to("docs/en"))


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def prose_of(page: Path) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def headings_of(page: Path) -> list[str]:
    return re.findall(r"^(#+) ", prose_of(page), re.MULTILINE)


def links_of(page: Path) -> list[str]:
    """Targets of all links and pictures that do not leave the repository."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)) if not target.startswith("http")]


# ---- two languages ---------------------------------------------------------------------------------------------------


def test_both_trees_have_the_same_pages() -> None:
    english, chinese = (ROOT / "docs" / "en", ROOT / "docs" / "zh")
    pages = sorted(path.relative_to(english) for path in english.rglob("*"))
    assert pages == sorted(path.relative_to(chinese) for path in chinese.rglob("*")) != []


@EVERY_PAGE
def test_both_languages_say_the_same(page: Path) -> None:
    """As far as a test can tell: the same headings, code and links, as many rows and list entries."""
    other = mirror(page)
    assert headings_of(other) == headings_of(page)
    assert blocks_of(other) == blocks_of(page)
    names = [[target.replace(".zh-CN", "").split("/")[-1] for target in links_of(each)] for each in (page, other)]
    assert names[0] == names[1]
    for mark in (r"^\|", r"^(?:- |\d\. )"):
        assert len(re.findall(mark, prose_of(other), re.M)) == len(re.findall(mark, prose_of(page), re.M)), mark


@EVERY_PAGE
def test_each_language_is_that_language(page: Path) -> None:
    english = prose_of(page).replace("简体中文", "")
    assert not HAN.search(english) or page.name == "glossary.md"  # its middle column is Chinese
    for paragraph in re.split(r"\n\s*\n", prose_of(mirror(page))):
        words = re.sub(r"`[^`]*`|\([^)]*\)|\[[^\]]*\.\w+\]|^#.*$|^\|.*$", "", paragraph, flags=re.MULTILINE)
        assert HAN.search(words) or len(re.findall(r"[A-Za-z]{2,}", words)) < 4, paragraph


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links_of(page):
        assert (ROOT / page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


# ---- the pages, followed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_box: Path) -> Path:
    """A folder with what the pages speak of; the run comes from the README's own command, made short."""
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smalti.zoo.box, "BOX", tiny_box)
        patch.chdir(folder)
        shutil.copytree(ROOT / "recipes", "recipes")
        for name in ("photos", "demo", "demo/photographs"):
            Path(name).mkdir()
        photograph = open_images("embedded:test").load(0)
        save_image("demo/photographs/astronaut.png", photograph)
        save_image("photo.jpg", photograph[:150, 100:300].copy())
        for number, name in enumerate(("a.jpg", "b.png", "c.png")):
            save_image(Path("photos", name), photograph[100 * number : 100 * number + 80, 150:250].copy())
        short = OptimizationConfig(steps=1, batch_size=1)
        train(TrainConfig(out="demo/tokenizer", optimization=short, **TRAINING))
        first = next(arguments for arguments in commands_of(Path("README.md")) if arguments[0] == "train")
        assert main([*first, *TINY]) == 0
    return folder


@pytest.fixture
def bench(workshop: Path, box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workshop, entered."""
    folder = tmp_path / "bench"
    shutil.copytree(workshop, folder)
    monkeypatch.chdir(folder)
    return folder


def commands_in(block: str) -> list[list[str]]:
    """The arguments of every `smalti` in a block of shell commands."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["smalti"]]


def commands_of(page: Path) -> list[list[str]]:
    return [command for language, block in blocks_of(page) if language == "bash" for command in commands_in(block)]


def check_that_it_parses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the job itself everything is real: the verb's own call of the parser, and a config that is validated."""
    verb = importlib.import_module(module_of(arguments[0]))
    configs = []

    def parse_and_stop(*args: object, **kwargs: object) -> None:
        configs.append(parse_config(*args, **kwargs))  # type: ignore[arg-type]
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(verb, "parse_config", parse_and_stop)
        patch.setattr("smalti.cli.missing_file.FLAGS", {})  # the files of the page need not be here
        assert main(arguments) == 0, shlex.join(arguments)
    assert len(configs) == 1 or "--print_config" in arguments
    for config in configs:
        if isinstance(config, TrainConfig):
            build_model(config)


def run_python(block: str, names: dict, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block; what it prints must be what its comments promise."""
    capsys.readouterr()
    exec(compile(block, "<document>", "exec"), names)
    promised = re.findall(r"^\s*print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert len(promised) == len(re.findall(r"\bprint\(", block)), "every print says what it prints"
    assert capsys.readouterr().out.splitlines() == promised


@EVERY_PAGE
def test_a_page_can_be_followed(
    page: Path, bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict = {"__name__": "document"}
    for language, block in blocks_of(page):
        if language == "python":
            run_python(block, names, capsys)
        elif language == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", block)
            assert name, "a recipe's first line is its file name"
            Path(name[1]).write_text(block, encoding="utf-8")
        elif language == "bash":
            for command in commands_in(block):
                check_that_it_parses(command, monkeypatch)
                # These are quick, and the Python below may read what they wrote
                if command[0] in ("encode", "decode", "train-codec") or page.name in FOLLOWED:
                    assert main([*command, *SHORTER.get(command[0], [])]) == 0
        else:
            assert language == "text"


def test_the_commands_of_the_readme_work(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands_of(Path("README.md")):
        if command[0] == "train":
            command = [*command, *TINY, "--force"]
        assert main(command) == 0, command
    for decoded, reconstructed in (("picture.png", "again.png"), ("photo-decoded.png", "photo-again.png")):
        assert Path(decoded).read_bytes() == Path(reconstructed).read_bytes()
    assert "PSNR" in capsys.readouterr().out


def test_every_command_is_documented() -> None:
    documented = {command[0] for page in ENGLISH for command in commands_of(page)}
    assert documented | {"demo"} == set(COMMANDS)
    for verb in COMMANDS:
        assert f"| `smalti {verb}` |" in text_of(Path("README.md"))


def test_every_quantizer_is_described() -> None:
    """Each has a part of the page with its formula and a block that builds it."""
    parts = text_of(Path("docs/en/quantizers.md")).split("\n### ")
    described = {part.partition("\n")[0]: part for part in parts}
    for name in set(QUANTIZERS) - {"OneHotQuantizer"}:  # described with `GumbelQuantizer`
        assert "\n```text\n" in described[name]
        assert f"{name}(" in described[name]
    assert "OneHotQuantizer" in described["GumbelQuantizer"]


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(Path("Makefile")), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", text_of(page)))
    named |= {target for _, block in blocks_of(page) for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)}
    assert named <= targets


# ---- examples --------------------------------------------------------------------------------------------------------

SHORT = {
    "quantize_random.py": [],
    "train_on_own_loop.py": ["--steps", "1"],
    "language_model.py": ["--steps", "2", "--data", "clothes", "--out", "out"],
}
"""Arguments with which an example is over soon."""


def some_clothes(folder: Path) -> None:
    """MNIST's files with a few pictures of ten classes."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    for name, values in (("train-images-idx3-ubyte", pixels), ("train-labels-idx1-ubyte", labels)):
        header = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
        (folder / name).write_bytes(header + values.tobytes())


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    some_clothes(tmp_path / "clothes")
    monkeypatch.setattr(sys, "argv", [str(path), *SHORT[path.name]])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(HAN.search(line) and re.search("[A-Za-z]", line) for line in lines), "every line is in both languages"
    assert path.name in text_of(Path("README.md"))


NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"


def test_the_notebook_works(bench: Path) -> None:
    names: dict = {"__name__": "notebook"}
    for number, code in enumerate(cells_of("code")):
        source = code.replace("QUICK = False", "QUICK = True") if number == 0 else code
        assert ("QUICK = True" in source) == (number == 0)
        exec(compile(source, f"<cell {number}>", "exec"), names)
    assert Path("samples/grid.png").is_file()


def test_the_notebook_is_clean_and_in_both_languages() -> None:
    """No output but pictures, no counters, and Chinese beside the English of every text."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert cell.get("execution_count") is None
        for output in cell.get("outputs", []):
            assert output["output_type"] == "display_data"
            assert set(output["data"]) == {"image/jpeg"}
    for text in cells_of("markdown"):
        assert HAN.search(text)
        assert re.search("[A-Za-z]{2,}", text)
    assert NOTEBOOK.stat().st_size < 300_000


def cells_of(kind: str) -> list[str]:
    """The sources of the notebook's cells of a kind."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


# ---- what CONTRIBUTING says about the house --------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of CONTRIBUTING.md, without its head."""
    section = text_of(Path("CONTRIBUTING.md")).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_rooms_is_that_of_the_source() -> None:
    floors: dict[str, int] = {}
    for floor, rooms, _ in rows("Rooms"):
        floors |= dict.fromkeys(re.findall(r"`(\w+)(?:/|\.py)`", rooms), int(floor))
    source = ROOT / "src" / "smalti"
    packages, modules = source.glob("*/__init__.py"), source.glob("[!_]*.py")
    assert set(floors) == {path.parent.name for path in packages} | {path.stem for path in modules}
    for path in source.glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smalti."):
                room = node.module.split(".")[1]
                assert room == path.parent.name or floors[room] < floors[path.parent.name], f"{path}: {node.module}"


def test_the_files_to_look_at_are_there() -> None:
    named = re.findall(r"`([\w/]+/\w+\.py)`", " ".join(cells[1] for cells in rows("Where to look")))
    assert len(named) > 15
    places = (ROOT, ROOT / "src" / "smalti")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_every_dependency_says_why_it_is_there() -> None:
    project = tomllib.loads(text_of(Path("pyproject.toml")))["project"]
    required = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in required} - {"smalti"}  # type: ignore[index]
    assert {name for row in rows("Dependencies") for name in re.findall(r"`([\w-]+)`", row[0])} == names
