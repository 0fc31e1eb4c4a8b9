"""Parquet files with one picture file per row as a source, read in place, one row group at a time.

A row group is the smallest unit that Parquet reads, so each row group is a block (`Blocks`), and a shuffled epoch takes
the row groups in random order. `hub.py` reads the same files through the `datasets` library, which first copies them
into a cache with random access.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smalti.data.columns import choose_columns
from smalti.data.decode import DEFAULT_MAX_PIXELS
from smalti.data.encoded import Encoded, EncodedSource
from smalti.data.order import SHUFFLE_WINDOW
from smalti.data.source import Blocks, MissingPackageError, SourceVanishedError

if TYPE_CHECKING:
    import pyarrow


class ParquetImages(EncodedSource):
    """All rows of Parquet files, in order. Keys are file/row, the file without folder and ".parquet".

    Encoded row groups stay in memory as long as a shuffled epoch needs them: those of 1024 images plus one. Use files
    with small row groups (`datasets` writes 100 rows for images).

    Args:
        files: Parquet files with equal columns; their names must differ.
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.
        columns: names of the columns for "image", "label" and "caption"; what is not named is found, see `columns.py`.
        classes_of: files of the other splits, whose class names are included if labels are names.

    Raises:
        MissingPackageError: pyarrow is not installed.
        FileNotFoundError: a file does not exist.
        ValueError: a file is not Parquet, is damaged, has no rows or other columns; or columns are not found.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        channels: int = 3,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        columns: dict[str, str] | None = None,
        classes_of: Sequence[str | Path] = (),
    ):
        super().__init__(channels, max_pixels)
        self._files = [str(path) for path in files]
        self._names = [Path(path).stem for path in self._files]
        if not self._files or len(set(self._names)) < len(self._names):
            raise ValueError(f"files: got {self._files}, expected at least one Parquet file, all with different names")
        opened = [_open(path) for path in self._files]
        for path, file in zip(self._files, opened, strict=True):
            if file.schema_arrow.names != opened[0].schema_arrow.names:
                raise ValueError(f"{path}: columns differ from those of {self._files[0]}")
        self.columns = choose_columns(opened[0].schema_arrow, self._files[0], **(columns or {}))
        if self.columns.by_name:
            all_files = {*self._files, *map(str, classes_of)}
            self.columns = self.columns.with_names(
                name for path in all_files for name in _values(path, self.columns.label)
            )
        self.class_names = self.columns.class_names
        self._groups = [(number, group) for number, file in enumerate(opened) for group in range(file.num_row_groups)]
        sizes = [opened[number].metadata.row_group(group).num_rows for number, group in self._groups]
        self._count = sum(sizes)
        if not self._count:
            raise ValueError(f"{self._files[0]}: no row in this file" + " and the others" * (len(self._files) > 1))
        self.blocks = Blocks(tuple(np.cumsum([0, *sizes[:-1]]).tolist()))
        self._file_starts = np.cumsum([0] + [file.metadata.num_rows for file in opened]).tolist()
        self._kept_at_most = SHUFFLE_WINDOW + max(sizes)
        self._kept: OrderedDict[int, pyarrow.Table] = OrderedDict()
        self._damaged: dict[int, str] = {}

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        file = bisect_right(self._file_starts, index) - 1
        return f"{self._names[file]}/{index - self._file_starts[file]:07d}"

    def fetch(self, index: int) -> Encoded:
        assert self.blocks is not None
        block = bisect_right(self.blocks.starts, index) - 1
        if block not in self._kept and block not in self._damaged:
            self._read_group(block)
        if block in self._damaged:
            return Encoded(problem=self._damaged[block])
        self._kept.move_to_end(block)
        (row,) = self._kept[block].slice(index - self.blocks.starts[block], 1).to_pylist()
        return self.columns.encoded(row)

    def _read_group(self, block: int) -> None:
        """Read the columns of one row group into the cache; the least recently used row groups are dropped."""
        number, group = self._groups[block]
        path = self._files[number]
        try:
            self._kept[block] = _open(path).read_row_group(group, columns=self.columns.names, use_threads=False)
        except FileNotFoundError as error:
            raise SourceVanishedError(f"{path}: disappeared while in use") from error
        except (OSError, ValueError) as error:
            self._damaged[block] = f"row group {group} cannot be read ({' '.join(str(error).split())[:120]})"
        while sum(map(len, self._kept.values())) > self._kept_at_most:
            self._kept.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_kept": OrderedDict()}


def _values(path: str, column: str | None) -> set[Any]:
    """Distinct values in a column of a file, read one row group at a time."""
    file = _open(path)
    groups = (file.read_row_group(n, columns=[column], use_threads=False) for n in range(file.num_row_groups))
    return {value for group in groups for value in group[column].unique().to_pylist()}


def _open(path: str) -> "pyarrow.parquet.ParquetFile":
    """Open without Arrow's threads: one that starts while the process exits would abort it."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: pyarrow is not installed; install it with: pip install 'smalti[datasets]'"
        ) from error
    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except ArrowException as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error})") from error
