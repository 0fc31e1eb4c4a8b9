"""Data sets of the Hugging Face hub, Arrow files and folders of `save_to_disk` as sources, through `datasets`.

`HubImages` has the whole set on disk, in memory-mapped Arrow files with random access. `HubStream` stores nothing and
downloads while reading, in order. Its shuffled epochs are those of `order.py` for blocks in sequence. Returning to an
earlier image, or resuming in the middle, reads from the beginning again, without decoding.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smalti.data.columns import Columns, choose_columns
from smalti.data.decode import DEFAULT_MAX_PIXELS
from smalti.data.encoded import Encoded, EncodedSource
from smalti.data.order import SHUFFLE_WINDOW
from smalti.data.source import Blocks, MissingPackageError, SourceVanishedError

if TYPE_CHECKING:
    import datasets


class HubImages(EncodedSource):
    """A `datasets.Dataset`. Keys are split/row.

    Args:
        dataset: with a column of images.
        name: what errors call it.
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.
        columns: names of the columns for "image", "label" and "caption"; what is not named is found, see `columns.py`.

    Raises:
        ValueError: no row, or columns are not found.
    """

    def __init__(
        self,
        dataset: "datasets.Dataset",
        name: str,
        channels: int = 3,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        columns: dict[str, str] | None = None,
    ):
        super().__init__(channels, max_pixels)
        if not len(dataset):
            raise ValueError(f"{name}: the data set has no row")
        self.columns = _columns(dataset, name, columns)
        if self.columns.by_name:
            self.columns = self.columns.with_names(dataset.unique(self.columns.label))
        self.class_names = self.columns.class_names
        self._dataset = _encoded(dataset, self.columns)
        self._split = str(dataset.split or "train")

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, index: int) -> str:
        return f"{self._split}/{index:09d}"

    def fetch(self, index: int) -> Encoded:
        return self.columns.encoded(self._dataset[index])


class HubStream(EncodedSource):
    """A `datasets.IterableDataset`: nothing is stored on disk. Keys are split/row.

    The number of images is taken from the data set's metadata; without it, the stream is read once to count. Labels
    must be numbers: the classes of a column of names are known only at the end of the stream.

    Args:
        dataset: with a column of images.
        name: what errors call it.
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.
        columns: names of the columns for "image", "label" and "caption"; what is not named is found, see `columns.py`.

    Raises:
        ValueError: no row, or columns are not found.
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset",
        name: str,
        channels: int = 3,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        columns: dict[str, str] | None = None,
    ):
        super().__init__(channels, max_pixels)
        dataset = dataset if dataset.features is not None else dataset._resolve_features()
        self.name = name
        self.columns = _columns(dataset, name, columns)
        if self.columns.by_name and columns and "label" in columns:
            raise ValueError(
                f"{name}: label: got {self.columns.label!r} with class names, expected numbers in a streamed data set"
            )
        if self.columns.by_name:
            self.columns = replace(self.columns, label=None, by_name=False)
        self.class_names = self.columns.class_names
        self._dataset = _encoded(dataset, self.columns)
        self._split = str(dataset.split or "train")
        self._count = _stated_length(dataset) or sum(1 for _ in self._dataset)
        if not self._count:
            raise ValueError(f"{name}: the data set has no row")
        self.blocks = Blocks(tuple(range(0, self._count, SHUFFLE_WINDOW)), in_sequence=True)
        self._rest: Iterator[dict[str, Any]] = iter(())
        self._next_block = -1
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        return f"{self._split}/{index:09d}"

    def fetch(self, index: int) -> Encoded:
        block, offset = divmod(index, SHUFFLE_WINDOW)
        if block != self._next_block - 1:
            if block != self._next_block:
                self._rest = iter(self._dataset.skip(block * SHUFFLE_WINDOW))
            self._rows = list(islice(self._rest, SHUFFLE_WINDOW))
            self._next_block = block + 1
        if offset >= len(self._rows):
            end = block * SHUFFLE_WINDOW + len(self._rows)
            raise SourceVanishedError(f"{self.name}: the stream ended after {end} of {self._count} images")
        return self.columns.encoded(self._rows[offset])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_rest": iter(()), "_next_block": -1, "_rows": []}


def open_hub(
    name: str,
    split: str,
    config: str | None = None,
    streaming: bool = False,
    channels: int = 3,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    columns: dict[str, str] | None = None,
) -> EncodedSource:
    """A data set by its name on the hub (owner/name), or a folder that the `datasets` library understands.

    Args:
        name: name or folder for `datasets.load_dataset`.
        split: "train", "test", ...
        config: configuration of the data set, if it has several.
        streaming: read while downloading, instead of storing the whole set on disk.
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.
        columns: names of the columns for "image", "label" and "caption".

    Raises:
        MissingPackageError: `datasets` is not installed.
        OSError: no such data set, or the hub cannot be reached.
        ValueError: no such split or configuration, or columns are not found.
    """
    datasets = _package(name)
    try:
        dataset = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except datasets.exceptions.DatasetsError as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{name}: {error}") from error
    kind = HubStream if streaming else HubImages
    return kind(dataset, name, channels, max_pixels, columns)


def open_arrow(
    paths: list[str],
    split: str,
    channels: int = 3,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    columns: dict[str, str] | None = None,
) -> HubImages:
    """Memory-map Arrow files, or one folder that `save_to_disk` wrote.

    Args:
        paths: the files, or the one folder.
        split: for a folder with several splits; "" means "train".
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.
        columns: names of the columns for "image", "label" and "caption".

    Raises:
        MissingPackageError: `datasets` is not installed.
        ValueError: damaged files, no such split, or columns are not found.
    """
    datasets = _package(paths[0])
    if not Path(paths[0]).is_dir():
        try:
            dataset = datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths])
        except ValueError as error:
            raise ValueError(f"{paths[0]}: cannot be read as Arrow ({error})") from error
        return HubImages(dataset, paths[0], channels, max_pixels, columns)
    dataset = datasets.load_from_disk(paths[0])
    if isinstance(dataset, datasets.DatasetDict):
        wanted = split or "train"
        if wanted not in dataset:
            raise ValueError(f"{paths[0]}: split: got {wanted!r}, expected one of {', '.join(dataset)}")
        dataset = dataset[wanted]
    return HubImages(dataset, paths[0], channels, max_pixels, columns)


def _package(name: str) -> Any:
    """Import the `datasets` library, or raise an error with the install command."""
    try:
        import datasets
    except ImportError as error:
        install = "install it with: pip install 'smalti[datasets]'"
        raise MissingPackageError(f"{name}: the package datasets is not installed; {install}") from error
    return datasets


def _columns(dataset: Any, name: str, columns: dict[str, str] | None) -> Columns:
    return choose_columns(dataset.features.arrow_schema, name, **(columns or {}))


def _encoded(dataset: Any, columns: Columns) -> Any:
    """The same rows, with picture files as bytes and without unused columns."""
    from datasets import Image

    dataset = dataset.select_columns(columns.names)
    if isinstance(dataset.features[columns.image], Image):
        return dataset.cast_column(columns.image, Image(decode=False))
    return dataset


def _stated_length(dataset: Any) -> int | None:
    """Number of rows in a stream's metadata; 0 or None if unknown."""
    splits = dataset.info.splits or {}
    split = splits.get(str(dataset.split))
    return None if split is None else split.num_examples
