"""WebDataset's tar shards as a source: `shard-000000.tar` with `0001.jpg`, `0001.cls`, `0001.txt` one after the other.

The files of a sample share their name up to its first dot; what follows tells what they are
(https://github.com/webdataset/webdataset). The library of that name reads shards as a stream through a shuffle buffer,
which cannot be resumed exactly. Here Python's `tarfile` lists each shard once, and from then on every member is read by
its offset and size: any image at any time, so that order, sharding and resuming are those of every other source.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from io import FileIO
from itertools import product
from pathlib import Path

import numpy as np

from smalti.data.decode import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES
from smalti.data.encoded import Encoded, EncodedSource
from smalti.data.source import SourceVanishedError

__all__ = ["TarImages", "expand_braces"]

CAPTION_FIELDS = ("caption", "text")
"""Where a .json file holds the caption: the first of these that it has."""

MEMBER = np.dtype([("offset", np.int64), ("size", np.int64)])
SAMPLE = np.dtype([("shard", np.int32), ("image", MEMBER), ("cls", MEMBER), ("txt", MEMBER), ("json", MEMBER)])
"""Where the files of a sample lie; size -1 stands for a file that is not there."""


class TarImages(EncodedSource):
    """All samples with an image in uncompressed tar files, in the order of the shards and of the images in them.

    A sample's image is its first member of an image's extension. Its label is the number in `.cls`, its caption the
    text of `.txt` or else the field "caption" or "text" of `.json`. A key is shard/sample, the shard as a path relative
    to the folder that all shards share, without ".tar". Samples without an image are left out.

    Args:
        shards: the tar files.
        channels: 3 for RGB, 1 for grey.
        max_pixels: pictures of more pixels are reported as unreadable.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard is compressed, damaged or given twice, or no shard has an image.
    """

    def __init__(self, shards: Sequence[str | Path], channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS):
        super().__init__(channels, max_pixels)
        self._shards = [str(shard) for shard in shards]
        if not self._shards or len(set(self._shards)) < len(self._shards):
            raise ValueError(f"shards: {self._shards}, must be tar files that differ, at least one")
        shared = os.path.commonpath([Path(shard).absolute().parent for shard in self._shards])
        self._keys: list[str] = []
        samples = []
        for number, shard in enumerate(self._shards):
            name = Path(os.path.relpath(shard, shared)).with_suffix("").as_posix()
            listed = _list(shard)
            self._keys += [f"{name}/{key}" for key in listed]
            samples += [(number, *members) for members in listed.values()]
        if not samples:
            raise ValueError(f"{self._shards[0]}: no image in this shard" + " and the others" * (len(self._shards) > 1))
        self._samples = np.array(samples, SAMPLE)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def fetch(self, index: int) -> Encoded:
        sample = self._samples[index]
        path = self._shards[sample["shard"]]
        try:
            with Path(path).open("rb", buffering=0) as shard:
                image, label, text, fields = (_member(shard, sample[kind]) for kind in ("image", "cls", "txt", "json"))
        except OSError as error:
            raise SourceVanishedError(f"{path}: cannot be read any more ({error.strerror})") from error
        if image is None or len(image) < sample["image"]["size"]:
            return Encoded(problem="the shard ends before the picture does")
        try:
            return Encoded(image, None if label is None else int(label), _caption(text, fields))
        except ValueError as error:
            return Encoded(problem=f"its label or caption cannot be understood ({error})")


def expand_braces(pattern: str) -> list[str]:
    """`shard-{000000..000009}.tar` or `{a,b}.tar` as the list of names it stands for, in order."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_alternatives(part) if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def _alternatives(inside: str) -> list[str]:
    """What may stand for a brace with this inside: a range of numbers, as wide as its first, or a list."""
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span is None:
        return inside.split(",")
    first, last = span.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _list(shard: str) -> dict[str, list[tuple[int, int]]]:
    """Sample -> (offset, size) of image, cls, txt and json, for each sample with an image, in the order of images."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    order: list[str] = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                key, kind = folder + slash + stem, extension.lower()
                if f".{kind}" in IMAGE_SUFFIXES:
                    kind = "image"
                    if kind not in samples.get(key, {}):
                        order.append(key)
                samples.setdefault(key, {}).setdefault(kind, (member.offset_data, member.size))
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: cannot be read as an uncompressed tar file ({error})") from error
    return {key: [samples[key].get(kind, (0, -1)) for kind in ("image", "cls", "txt", "json")] for key in order}


def _member(shard: FileIO, member: np.void) -> bytes | None:
    """The bytes of one member, or None where there is no such member."""
    if member["size"] < 0:
        return None
    shard.seek(member["offset"])
    return shard.read(member["size"])


def _caption(text: bytes | None, fields: bytes | None) -> str | None:
    """The caption of a sample from its .txt or its .json."""
    if text is not None:
        return text.decode("utf-8").strip()
    values = json.loads(fields) if fields is not None else None
    found: Iterable[str] = (values[name] for name in CAPTION_FIELDS if isinstance(values, dict) and name in values)
    return next((caption for caption in found if isinstance(caption, str)), None)
