"""Tables that translate a publisher's tensor names to smalti's, and back for messages and exports.

A table is two dictionaries. `modules` maps the path of a module, with {i} and {j} for numbers:

    "encoder.down.{i}.block.{j}": "encoder.levels.{i}.blocks.{j}"

and `leaves` maps names inside a module: "nin_shortcut": "shortcut".
"""

import re
from collections.abc import Iterable, Mapping

from smalti.checks import expect


class NameTable:
    """Two-way translation of tensor names."""

    def __init__(self, modules: Mapping[str, str], leaves: Mapping[str, str], *, fine_to_coarse: bool = True):
        """
        Args:
            modules: paths of modules, the publisher's to smalti's; the first match counts.
            leaves: names inside modules, the publisher's to smalti's.
            fine_to_coarse: whether the publisher numbers the decoder's levels from fine to coarse; smalti numbers them
                from coarse to fine, as they run.
        """
        self.modules = dict(modules)
        self.leaves = dict(leaves)
        self.fine_to_coarse = fine_to_coarse

    def translate(self, names: Iterable[str]) -> dict[str, str]:
        """smalti's name for each publisher's name in the table; other names are left out."""
        ours = {name: found for name in names if (found := self._convert(name, self.modules, self.leaves)) is not None}
        levels = decoder_levels(ours.values())
        return {name: self._ordered(found, levels) for name, found in ours.items()}

    def invert(self, names: Iterable[str]) -> dict[str, str]:
        """The publisher's name for each name of smalti: the inverse of `translate`. If several names translate to one
        of smalti's, the first in the table is taken.

        Raises:
            ValueError: a name that is not in the table.
        """
        names = list(names)
        levels = decoder_levels(names)
        theirs = {name: self.original(name, levels) for name in names}
        back = self.translate(theirs.values())
        for name, found in theirs.items():
            expect(back.get(found) == name, "tensor", name, "one that the published code has")
        return theirs

    def original(self, name: str, levels: int) -> str:
        """The publisher's name for one of smalti's; `levels` is the decoder's number of levels."""
        inverse: dict[str, str] = {}
        leaves: dict[str, str] = {}
        for theirs, ours in self.modules.items():
            inverse.setdefault(ours, theirs)
        for theirs, ours in self.leaves.items():
            leaves.setdefault(ours, theirs)
        return self._convert(self._ordered(name, levels), inverse, leaves) or name

    def _ordered(self, name: str, levels: int) -> str:
        """The name, with the decoder's level counted from the other end if the publisher does so."""
        if not self.fine_to_coarse:
            return name
        return re.sub(r"^(.*decoder.*\.levels\.)(\d+)", lambda m: f"{m[1]}{levels - 1 - int(m[2])}", name)

    @staticmethod
    def _convert(name: str, modules: Mapping[str, str], leaves: Mapping[str, str]) -> str | None:
        for source, target in modules.items():
            pattern = re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
            if match := re.fullmatch(rf"{pattern}(?P<leaf>\..*)?", name):
                numbers = match.groupdict()
                return target.format(**numbers) + _replace(numbers["leaf"] or "", leaves)
        return None


def _replace(leaf: str, leaves: Mapping[str, str]) -> str:
    """ ".nin_shortcut.weight" to ".shortcut.weight": replaces every part in the table, longer ones first."""
    if not leaves:
        return leaf
    known = "|".join(re.escape(source) for source in sorted(leaves, key=len, reverse=True))
    return re.sub(rf"\.({known})(?=\.|$)", lambda match: f".{leaves[match[1]]}", leaf)


def decoder_levels(names: Iterable[str]) -> int:
    """Number of the decoder's levels in these names of smalti."""
    found = [int(match[1]) for name in names if (match := re.match(r".*decoder.*\.levels\.(\d+)\.", name))]
    return max(found, default=0) + 1
