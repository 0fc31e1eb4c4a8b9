"""Views of an image for tokenizing: center crop, further crops, mirror images; the same in every run.

`transforms.py` draws one crop per training step. Here all crops of an image are taken at once, each with its position
in the image.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from smalti.checks import at_least
from smalti.data.loader import Order, ordered_picture, read_batches
from smalti.data.order import Position, augmentation_stream
from smalti.data.source import ImageSource, SourceVanishedError, UnreadableImageError, to_array
from smalti.data.transforms import MOST_PIXELS, cover_and_crop


@dataclass(frozen=True)
class ViewsConfig:
    """The views taken of each image."""

    size: list[int] | None = None
    """Height and width of every view; None: the whole image at its own size."""
    crops: int = 1
    """Number of crops: the first is the center crop, further ones are random."""
    mirrored: bool = False
    """Whether each crop is followed by its mirror image."""
    zoom: float = 1.0
    """Maximum random zoom before the random crops."""
    seed: int = 0
    """Random seed of the crops."""

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= MOST_PIXELS for side in self.size):
            raise ValueError(f"size: got {self.size}, expected sides of 1 to {MOST_PIXELS} pixels")
        at_least(1, crops=self.crops, zoom=self.zoom)
        if self.size is None and self.crops > 1:
            raise ValueError(f"crops: got {self.crops}, expected 1 without a size")


@dataclass
class View:
    """One view of an image."""

    pixels: UInt8[Tensor, "c h w"]
    """The tokenized pixels."""
    box: tuple[float, float, float, float]
    """Top, left, bottom, right in pixels of the image."""
    mirrored: bool
    """Whether left and right were exchanged."""


@dataclass
class ViewedImage:
    """All views of an image."""

    key: str
    """Key of the image."""
    size: tuple[int, int]
    """Height and width of the image in pixels."""
    label: int | None
    """Its class."""
    caption: str | None
    """Its text."""
    views: list[View]
    """Its views, in order."""


@dataclass
class ViewBatch:
    """Several images."""

    images: list[ViewedImage] = field(default_factory=list)
    """The readable images."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Key -> reason, for the unreadable images."""
    notes: dict[str, str] = field(default_factory=dict)
    """Key -> problem with the label or caption of a readable image."""
    vanished: str = ""
    """Reason if the source is gone."""


def view_batches(
    source: ImageSource, config: ViewsConfig, pieces: Iterable[Sequence[int]], workers: int = 0
) -> Iterator[ViewBatch]:
    """The images of each piece, in order, with all their views.

    Args:
        source: the images.
        config: the views to take.
        pieces: indices of the images of each batch.
        workers: processes that read; 0: this process.

    Raises:
        SourceVanishedError: the source is gone.
    """
    batches = (tuple(Position(0, index) for index in indices) for indices in pieces)
    for batch in read_batches(_ViewReader(source, config), batches, workers):
        source.unreadable.update(batch.unreadable)
        source.notes.update(batch.notes)
        yield batch


class _ViewReader(Dataset[ViewBatch]):
    """Reads the images of a batch; runs in the workers."""

    def __init__(self, source: ImageSource, config: ViewsConfig):
        self.source, self.config = source, config

    def __getitem__(self, orders: tuple[Order, ...]) -> ViewBatch:
        batch = ViewBatch()
        try:
            for order in orders:
                self._append(batch, order)
        except SourceVanishedError as error:  # an exception would arrive as the traceback of a worker
            batch.vanished = str(error)
        return batch

    def _append(self, batch: ViewBatch, order: Order) -> None:
        try:
            picture = ordered_picture(self.source, order)
        except UnreadableImageError as error:
            batch.unreadable[error.key] = error.reason
            return
        index = order.position.index
        known = self.source.label(index), self.source.caption(index)
        if note := self.source.notes.get(self.source.key(index)):
            batch.notes[self.source.key(index)] = note
        generator = augmentation_stream(self.config.seed, order.position)
        assert generator is not None, "positions of views have an epoch"
        views = list(_views(picture, self.config, generator))
        batch.images.append(ViewedImage(self.source.key(index), (picture.height, picture.width), *known, views))


def _views(picture: Image.Image, config: ViewsConfig, generator: np.random.Generator) -> Iterator[View]:
    for number in range(config.crops):
        cut, (left, top, right, bottom) = picture, (0.0, 0.0, float(picture.width), float(picture.height))
        if config.size is not None:
            zoom, place = 1.0, None
            if number > 0:
                drawn = generator.random(3)
                zoom, place = config.zoom ** float(drawn[0]), (float(drawn[1]), float(drawn[2]))
            cut, (left, top, right, bottom) = cover_and_crop(picture, (config.size[0], config.size[1]), zoom, place)
        pixels = to_array(cut)
        for mirrored in (False, True) if config.mirrored else (False,):
            turned = pixels[:, ::-1] if mirrored else pixels
            yield View(torch.from_numpy(turned.transpose(2, 0, 1).copy()), (top, left, bottom, right), mirrored)
