"""Shared by the commands that measure images: a progress bar, and the result as JSON."""

import json
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import Progress

Result = TypeVar("Result")


@runtime_checkable
class Reportable(Protocol):
    """A result that can be converted to plain JSON types."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""


def to_json(result: Reportable, command: str) -> str:
    """A result, with the command that repeats the measurement, as a JSON object."""
    content = result.to_dict()
    first = {name: content.pop(name) for name in ("version", "smalti")}
    return json_text({**first, "command": command, **content}, indent=2)


def json_text(content: dict[str, Any], indent: int | None = None) -> str:
    """Plain JSON types as printable JSON: bytes of a file name that are not valid Unicode become JSON escapes."""
    text = json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def with_progress(work: Callable[[Callable[[int, int], None]], Result]) -> Result:
    """Run `work` with a progress bar on a terminal; `work` is given a function to call with (images done, total)."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)
        return work(lambda done, total: progress.update(task, completed=done, total=total))
