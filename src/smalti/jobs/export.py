"""Write a tokenizer in the format of another project, or as graphs that run without this package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smalti.formats.atomic import check_replaceable, replace_folder
from smalti.tokenizers import Tokenizer
from smalti.zoo import open_tokenizer
from smalti.zoo.export.format import Format
from smalti.zoo.export.formats import FORMATS

README = "README.md"


@dataclass(frozen=True)
class ExportConfig:
    """Write a tokenizer in the format of another project, or as graphs that run without smalti."""

    model: str
    """Tokenizer: a built-in name, a folder with a saved model, a published checkpoint, or a name on the Hugging Face
    hub."""
    out: Path
    """Folder to write."""
    format: Literal["var", "taming", "llamagen", "diffusers", "onnx", "torch-export"]
    """A checkpoint for the code of VAR, taming-transformers, LlamaGen or diffusers; ONNX files; or programs of
    torch.export."""
    force: bool = False
    """Replace an existing folder."""


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    out: Path
    """The folder."""
    files: tuple[str, ...]
    """The files in it, without README.md, which says the same as this result."""
    num_bytes: int
    """Their size."""
    code: str
    """Whose code reads them."""
    loading: str
    """One line of Python that loads them there."""
    notes: tuple[str, ...]
    """What users should know, a sentence each."""


def export(config: ExportConfig) -> ExportResult:
    """Check, convert and write; the folder appears complete or not at all.

    Raises:
        FileNotFoundError: no such tokenizer.
        FileExistsError: the folder exists and `force` is off.
        ValueError: the format cannot express the tokenizer, or a package is missing.
    """
    check_replaceable(config.out, config.force, folder=True)
    tokenizer, form = open_tokenizer(config.model), FORMATS[config.format]
    with replace_folder(config.out, config.force) as folder:
        notes = (*form.write(tokenizer, folder), *_origin(tokenizer))
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        (folder / README).write_text(_readme(form, notes), encoding="utf-8")
    loading = form.loading.replace("OUT", str(config.out))
    return ExportResult(config.out, tuple(sizes), sum(sizes.values()), form.code, loading, notes)


def _origin(tokenizer: Tokenizer) -> list[str]:
    """Where published weights come from."""
    source = tokenizer.config().get("source")
    return [f"Weights: {source['title']}, {source['url']}, licence: {source['licence']}."] if source else []


def _readme(form: Format, notes: tuple[str, ...]) -> str:
    """The text of README.md."""
    lines = "\n".join(f"- {note}" for note in notes)
    head = f"A tokenizer, written by `smalti export` for {form.code}. OUT stands for this folder:"
    return f"{head}\n\n```python\n{form.loading}\n```\n\n{lines}\n"
