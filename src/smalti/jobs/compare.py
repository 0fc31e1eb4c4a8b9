"""Compare several tokenizers, and image codecs at the same file sizes, on the same images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smalti.data import open_images
from smalti.evaluation.comparison import ComparedTokenizer, Comparison, Curves, merged
from smalti.evaluation.gallery import gallery
from smalti.evaluation.inputs import MeasureConfig, prepared_images, target_size
from smalti.evaluation.judges import open_judges
from smalti.evaluation.measurement import (
    Originals,
    warnings_about,
    warnings_about_quality,
)
from smalti.metrics import (
    Codec,
    Protocol,
    require_codec,
)
from smalti.ops.device import find_device
from smalti.zoo import open_tokenizer


@dataclass(frozen=True)
class CompareConfig(MeasureConfig):
    """Which tokenizers to compare, on which images."""

    runs: tuple[str, ...]
    """Tokenizers: built-in names, folders, published checkpoints, or names on the Hugging Face hub."""
    data: str
    """Images: a folder, one file, or a name such as "embedded:test"."""
    codecs: tuple[Codec, ...] = ("jpeg", "webp", "avif")
    """Image codecs to compare with, at the size of each tokenizer's token files; "jxl" is JPEG XL."""
    curves: bool = False
    """Also code every image at several qualities of each codec, to plot image quality over bits per pixel."""
    pictures: int = 8
    """Number of images in the picture grid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ValueError("runs: got none, expected at least one tokenizer")
        if self.pictures < 1:
            raise ValueError(f"pictures: got {self.pictures}, expected at least 1")
        for codec in self.codecs:
            require_codec(codec)


def compare(config: CompareConfig, on_images: Callable[[int, int], None] | None = None) -> Comparison:
    """Measure several tokenizers, and codecs at the same file sizes, in one pass over the images.

    Args:
        config: which tokenizers, on which images.
        on_images: called with (images done, images in all) after every batch, for a progress bar.

    Raises:
        FileNotFoundError: no such tokenizer or data, or no weights of a network named in `judges`.
        ValueError: tokenizers that do not take the same pixels, no readable image, or a bad value in a file.
    """
    device = find_device(config.device)
    size = target_size(config.size, config.runs)
    tokenizers = [open_tokenizer(run).to(device).eval() for run in config.runs]
    channels = {tokenizer.image_channels for tokenizer in tokenizers}
    if len(channels) > 1:
        raise ValueError("runs: got tokenizers of RGB images and of grey images, expected one kind")
    source = open_images(config.data, channels=channels.pop())
    judges = open_judges(config.judges, config.runs, device, config.weights, config.download)
    protocol = Protocol.of_size(size, tokenizers[0].image_channels)
    originals = Originals(judges, protocol, config.statistics)
    compared = [
        ComparedTokenizer(run, tokenizer, judges, config.codecs)
        for run, tokenizer in zip(config.runs, tokenizers, strict=True)
    ]
    curves = Curves(config.codecs if config.curves else (), judges)
    shown: list[Tensor] = []
    for image, keys in prepared_images(source, size, config):
        image = image.to(device)
        originals.update(image)
        wanted = config.pictures - len(shown)
        shown += image[:wanted]
        for each in compared:
            each.update(image, keys, wanted)
        curves.update(image)
        if on_images is not None:
            on_images(originals.images + len(source.unreadable), len(source))
    statistics = originals.statistics()
    rows = [each.row(originals, statistics) for each in compared]
    coded = merged(compared)
    rows += [each.row(originals, statistics) for each in coded]
    pictures = [("originals", shown), *((c.name, c.shown) for c in compared), *((c.name, c.shown) for c in coded)]
    return Comparison(
        data=config.data,
        protocol=protocol,
        images=originals.images,
        images_sha256=originals.sha256,
        rows=tuple(rows),
        curves=curves.rows(originals, statistics),
        left_out={**judges.left_out, **originals.left_out(judges)},
        warnings=(
            *(warning for row in rows for warning in warnings_about_quality(row.name, row.quality)),
            *warnings_about(originals.images, rows[0].judgments),
        ),
        unreadable=dict(source.unreadable),
        machine={"device": str(device), "threads": torch.get_num_threads(), "batch_size": config.batch_size},
        config=replace(config, size="native" if size is None else size),
        picture=gallery(pictures),
    )
