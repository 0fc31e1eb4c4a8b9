"""Makes the shards of a token data set from images; any process on any machine can make any shard.

A shard is a pure function of the plan (tokenizer, images, crops, shard size) and its number. Its bytes do not depend on
the process that makes it or on the order.

Tokens may depend on the batch of an image: rounding differs between batch sizes, and a vector halfway between two codes
may get either. On the CPU, the network therefore always gets the same `CPU_BATCH` images of a shard together. On other
devices the batch size is an option, and the manifest records the share of tokens that change if images are encoded one
by one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from smalti.data import ImageSource
from smalti.data.views import ViewedImage, ViewsConfig, view_batches
from smalti.formats.storage import Storage
from smalti.formats.token_set import Shard, shard_name
from smalti.formats.token_shards import TokenRow, write_shard
from smalti.tokenizers import Tokenizer

CPU_BATCH = 16
"""Number of images that a CPU encodes together."""
EXACT = ("cpu",)
"""Devices whose tokens do not depend on the batch."""


@dataclass(frozen=True)
class Plan:
    """Everything that determines the bytes of a shard, and where tokenizer and images are."""

    run: str
    """Name or path of the tokenizer."""
    data: str
    """Name or path of the images."""
    fingerprint: str
    """Fingerprint of the tokenizer."""
    vocab_size: int
    """Vocabulary size of the tokenizer."""
    images_sha256: str
    """Hash of the keys of all images."""
    views: dict[str, Any]
    """Fields of `ViewsConfig`."""
    shard_images: int
    """Images per shard."""
    device_batch: int
    """Images that the network encodes together."""

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that must be equal to resume an interrupted job; names and paths may differ."""
        return {key: value for key, value in asdict(self).items() if key not in ("run", "data")}

    def images_of(self, number: int, images: int) -> range:
        """Numbers of the images in shard `number`, for a set of `images` images."""
        return range(number * self.shard_images, min((number + 1) * self.shard_images, images))


@dataclass(frozen=True)
class ShardNote:
    """Information about a finished shard, kept until the manifest is written."""

    shard: Shard
    """Entry of the shard in the manifest."""
    unreadable: dict[str, str]
    """Key of an image → reason why it could not be read."""
    grids: list[list[int]] | None
    """Grids of the rows; None if they differ or if there are no rows."""
    image_size: list[int] | None
    """Size of the tokenized crops; None if sizes differ."""
    batch_mismatch: float | None
    """`TokenManifest.batch_mismatch`, from the first batch of the set; None for other shards and on a CPU."""


def make_shards(
    plan: Plan,
    numbers: Sequence[int],
    storage: Storage,
    tokenizer: Tokenizer,
    source: ImageSource,
    workers: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Make shards, one after another; images for the next batch are read while one is encoded.

    Each shard is written before its note. If the process is killed in between, the shard is made again, byte for byte.
    """
    views = ViewsConfig(**plan.views)
    device = next(tokenizer.parameters()).device
    shard = _Shard()
    batches = view_batches(source, views, (indices for _, indices in _pieces(plan, numbers, len(source))), workers)
    for (number, indices), batch in zip(_pieces(plan, numbers, len(source)), batches, strict=True):
        rows = _encode(tokenizer, batch.images, device)
        shard.rows += rows
        shard.unreadable |= batch.unreadable
        if indices.start == 0 and device.type not in EXACT:
            shard.batch_mismatch = _mismatch(tokenizer, batch.images, rows, device)
        if indices.stop == plan.images_of(number, len(source)).stop:
            _write(storage, plan, number, shard)
            shard = _Shard()
        if on_images is not None:
            on_images(len(indices))


def _pieces(plan: Plan, numbers: Sequence[int], images: int) -> Iterator[tuple[int, range]]:
    """Batches of images that are encoded together, each with the number of its shard."""
    for number in numbers:
        of_shard = plan.images_of(number, images)
        for start in range(0, len(of_shard), plan.device_batch):
            yield number, of_shard[start : start + plan.device_batch]


@dataclass
class _Shard:
    """A shard being made."""

    rows: list[TokenRow] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    batch_mismatch: float | None = None


def _encode(tokenizer: Tokenizer, images: list[ViewedImage], device: torch.device) -> list[TokenRow]:
    """Encode all views of the images, in one batch per size."""
    numbered = [(image, n) for image in images for n in range(len(image.views))]
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, (image, n) in enumerate(numbered):
        by_size.setdefault(tuple(image.views[n].pixels.shape), []).append(place)
    rows: dict[int, TokenRow] = {}
    for places in by_size.values():
        pixels = torch.stack([numbered[place][0].views[numbered[place][1]].pixels for place in places])
        tokens = tokenizer.encode(pixels.to(device))
        for place, indices in zip(places, tokens.flatten().cpu().numpy(), strict=True):
            image, n = numbered[place]
            view = image.views[n]
            rows[place] = TokenRow(
                image.key, image.size, view.box, tokens.grids, indices, n, view.mirrored, image.label, image.caption
            )
    return [rows[place] for place in range(len(numbered))]


def _mismatch(tokenizer: Tokenizer, images: list[ViewedImage], together: list[TokenRow], device: torch.device) -> float:
    """Share of a batch's tokens that change when its images are encoded one by one."""
    alone = [row for image in images for row in _encode(tokenizer, [image], device)]
    different = sum(int((a.indices != b.indices).sum()) for a, b in zip(together, alone, strict=True))
    return different / max(1, sum(len(row.indices) for row in together))


def _write(storage: Storage, plan: Plan, number: int, made: _Shard) -> None:
    data = write_shard(made.rows, plan.vocab_size)
    storage.write(shard_name(number), data)
    images = len({row.key for row in made.rows})
    shard = Shard(shard_name(number), len(made.rows), images, hashlib.sha256(data).hexdigest())
    size = plan.views["size"] or common([row.image_size for row in made.rows])
    grids = common([row.grids for row in made.rows])
    note = ShardNote(shard, made.unreadable, grids, size, made.batch_mismatch)
    storage.write(note_name(number), json.dumps(asdict(note)).encode())


def note_name(number: int) -> str:
    """File name of the note about a finished shard."""
    return f"progress/{number:05d}.json"


def common(values: list[Any]) -> Any:
    """The common value, with lists as in JSON; None if the values differ."""
    return json.loads(json.dumps(values[0])) if values and all(value == values[0] for value in values) else None
