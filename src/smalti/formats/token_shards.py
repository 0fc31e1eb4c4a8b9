"""Token shards: many images as tokens, in plain Parquet files that other tools can read.

One row is one view of one image (its centre crop, another crop, a mirror image):

    key      string            name of the image in its source
    view     int32             0, 1, 2, … where an image was tokenized in several crops
    label    int32             class of the image; null if it has none
    caption  string            text of the image; null if it has none
    height   int32             height of the image in pixels, before cropping; width likewise
    crop     list<float32>     top, left, bottom, right of the tokenized area, in pixels of the image
    mirrored bool              whether left and right were exchanged
    grids    list<list<int32>> shape of each scale, coarse to fine
    indices  list<uint…>       all scales, coarse to fine, raster order, in the smallest type that holds the vocabulary

The bytes depend only on the rows and on pyarrow's version, which Parquet files record: no times, no random numbers.
`token_file.py`, in contrast, stores a few images as compactly as possible, for transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Int64

CROP_SIDES = 4


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One view of one image as tokens."""

    key: str
    """Name of the image in its source."""
    image_size: tuple[int, int]
    """Height and width of the image in pixels."""
    crop: tuple[float, float, float, float]
    """Top, left, bottom, right of the tokenized area, in pixels of the image."""
    grids: tuple[tuple[int, ...], ...]
    """Shape of each scale, coarse to fine."""
    indices: Int64[np.ndarray, " l"]
    """All tokens (L,), coarse to fine, raster order."""
    view: int = 0
    """Number of the view."""
    mirrored: bool = False
    """Whether left and right were exchanged."""
    label: int | None = None
    """Class of the image."""
    caption: str | None = None
    """Text of the image."""

    def __post_init__(self) -> None:
        length = sum(prod(grid) for grid in self.grids)
        if self.indices.shape != (length,):
            raise ValueError(f"indices: got {self.indices.shape}, expected ({length},) for the grids {self.grids}")


def index_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds 0 to vocab_size - 1.

    >>> index_dtype(4096)
    dtype('uint16')
    """
    return np.min_scalar_type(vocab_size - 1)


def write_shard(rows: Sequence[TokenRow], vocab_size: int) -> bytes:
    """Serialize rows as a Parquet file.

    Raises:
        ValueError: an index outside [0, vocab_size).
    """
    pa = _pyarrow()
    for row in rows:
        if row.indices.size and not 0 <= row.indices.min() <= row.indices.max() < vocab_size:
            raise ValueError(f"indices of {row.key}: got values outside the vocabulary, expected 0 to {vocab_size - 1}")
    dtype = index_dtype(vocab_size)
    columns = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "view": pa.array([row.view for row in rows], pa.int32()),
        "label": pa.array([row.label for row in rows], pa.int32()),
        "caption": pa.array([row.caption for row in rows], pa.string()),
        "height": pa.array([row.image_size[0] for row in rows], pa.int32()),
        "width": pa.array([row.image_size[1] for row in rows], pa.int32()),
        "crop": pa.array([list(row.crop) for row in rows], pa.list_(pa.float32())),
        "mirrored": pa.array([row.mirrored for row in rows], pa.bool_()),
        "grids": pa.array([[list(grid) for grid in row.grids] for row in rows], pa.list_(pa.list_(pa.int32()))),
        "indices": pa.array([row.indices.astype(dtype) for row in rows], pa.list_(pa.from_numpy_dtype(dtype))),
    }
    sink = pa.BufferOutputStream()
    _parquet().write_table(pa.table(columns), sink, compression="zstd", use_dictionary=["key", "caption"])
    return bytes(sink.getvalue())


def read_shard(data: bytes) -> list[TokenRow]:
    """Inverse of `write_shard`. Arrow's threads are off: one that starts while the process exits would abort it.

    Raises:
        ValueError: not a Parquet file, or not a token shard.
    """
    pa = _pyarrow()
    try:
        table = _parquet().ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
        columns = {name: table[name] for name in (*_PLAIN, "crop", "grids", "indices")}
        lists = columns["indices"].combine_chunks()
        values = lists.values.to_numpy(zero_copy_only=False).astype(np.int64)
        ends = lists.offsets.to_numpy()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"not a token shard ({' '.join(str(error).split())[:200]})") from error
    plain = zip(*(columns[name].to_pylist() for name in (*_PLAIN, "crop", "grids")), strict=True)
    rows = []
    for i, (key, view, label, caption, height, width, mirrored, crop, grids) in enumerate(plain):
        shapes = tuple(tuple(grid) for grid in grids)
        indices = values[ends[i] : ends[i + 1]]
        rows.append(
            TokenRow(key, (height, width), _box(crop), shapes, indices, view, mirrored, label, caption),
        )
    return rows


_PLAIN = ("key", "view", "label", "caption", "height", "width", "mirrored")


def _box(crop: list[float]) -> tuple[float, float, float, float]:
    if len(crop) != CROP_SIDES:
        raise ValueError(f"crop: got {crop}, expected top, left, bottom, right")
    top, left, bottom, right = crop
    return top, left, bottom, right


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError("token shards need pyarrow: pip install 'smalti[datasets]'") from error
    return pyarrow


def _parquet() -> Any:
    _pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet
