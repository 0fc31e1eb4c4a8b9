"""Python files that lie among pictures under the names of modules, and say so when they run."""

import sys
from pathlib import Path

MODULES = {"smalti", "torch", "numpy", "PIL", "pyarrow", "ray", "yaml"} | sys.stdlib_module_names


def lay_out(folder: Path, names: set[str]) -> None:
    """Write the files; each adds its name to `folder / "ran"` when it is imported."""
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write({name!r} + '\\n')\n")
