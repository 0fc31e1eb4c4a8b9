"""WebDataset's tar shards as a source: `shard-000000.tar` with `0001.jpg`, `0001.cls`, `0001.txt` one after the other.

The files of a sample share their name up to the first dot; the rest is their type
(https://github.com/webdataset/webdataset). The webdataset library reads shards as a stream through a shuffle buffer,
which cannot be resumed exactly. Here Python's `tarfile` lists each shard once, and members are then read by offset and
size. This gives random access, so order, sharding and resuming work as for every other source.
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from io import FileIO
from itertools import product
from pathlib import Path
from posixpath import basename, dirname, normpath
from typing import Any

import numpy as np

from smalti.data.decode import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES
from smalti.data.encoded import Encoded, EncodedSource
from smalti.data.source import SourceVanishedError

CAPTION_FIELDS = ("caption", "text")
"""Caption fields of a .json file, in order of preference."""

MEMBER = np.dtype([("offset", np.int64), ("size", np.int64)])
SAMPLE = np.dtype([("shard", np.int32), ("image", MEMBER), ("cls", MEMBER), ("txt", MEMBER), ("json", MEMBER)])
"""Positions of the files of a sample."""
MISSING, DANGLING = -1, -2
"""Sizes that mark a missing file, and a link to a missing file."""


class TarImages(EncodedSource):
    """All samples with an image in uncompressed tar files, in the order of the shards and of the images in them.

    The image is the first member with an image's suffix. The label is the number in `.cls`; if the first `.cls` holds
    no number, all hold class names. The caption is the text of `.txt`, else the field "caption" or "text" of `.json`.
    An invalid label or caption is dropped and recorded in `notes`; the image is kept. A key is shard/sample, where the
    shard is a path relative to the common folder of all shards, without ".tar". Samples without an image are skipped.

    A picture with several dots in its name, such as `photo.v2.jpg`, is a separate sample `photo.v2`, unless there is a
    picture `photo.jpg`: then it is a further file of that sample, as in WebDataset. Links within a shard are followed.
    The second member of the same name begins a second sample, `photo#2`.

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
            raise ValueError(f"shards: got {self._shards}, expected at least one tar file, none given twice")
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
        self.class_names = self._names_in_cls()
        self._labels = {name: label for label, name in enumerate(self.class_names)}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def fetch(self, index: int) -> Encoded:
        sample = self._samples[index]
        image, label, text, fields = self._members(sample, "image", "cls", "txt", "json")
        if sample["image"]["size"] == DANGLING:
            return Encoded(problem="link to a file that is not in the shard")
        if image is None or len(image) < sample["image"]["size"]:
            return Encoded(problem="the shard ends inside the picture")
        known: dict[str, Any] = {}
        notes = []
        for name, value in (("label", lambda: self._label(label)), ("caption", lambda: _caption(text, fields))):
            try:
                known[name] = value()
            except ValueError as error:
                notes.append(f"invalid {name}: {' '.join(str(error).split())[:120]}")
        return Encoded(image, note="; ".join(notes), **known)

    def _members(self, sample: np.void, *kinds: str) -> list[bytes | None]:
        path = self._shards[sample["shard"]]
        try:
            with Path(path).open("rb", buffering=0) as shard:
                return [_member(shard, sample[kind]) for kind in kinds]
        except OSError as error:
            raise SourceVanishedError(f"{path}: cannot be read any more ({error.strerror})") from error

    def _label(self, content: bytes | None) -> int | None:
        if content is None or not self.class_names:
            return None if content is None else int(content)
        return self._labels.get(content.decode("utf-8").strip())

    def _names_in_cls(self) -> tuple[str, ...]:
        """The class names in `.cls` files; none if the first file holds a number."""
        labelled = (sample for sample in self._samples if sample["cls"]["size"] >= 0)
        first = next(labelled, None)
        if first is None or _is_number(self._members(first, "cls")[0] or b""):
            return ()
        contents = {self._members(sample, "cls")[0] or b"" for sample in (first, *labelled)}
        return tuple(sorted({content.decode("utf-8", "replace").strip() for content in contents} - {""}))


def expand_braces(pattern: str) -> list[str]:
    """Expand `shard-{000000..000009}.tar` or `{a,b}.tar` to a list of names, in order."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_alternatives(part) if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def _alternatives(inside: str) -> list[str]:
    """Alternatives of one pair of braces: a range of numbers, with the width of the first, or a list."""
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span is None:
        return inside.split(",")
    first, last = span.groups()
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + step, step)]


def _list(shard: str) -> dict[str, list[tuple[int, int]]]:
    """Sample -> (offset, size) of image, cls, txt and json, for each sample with an image, in the order of images."""
    members = _listed(shard)
    named = [_sample(name, first=True) for name, _ in members]
    plain = {key for key, kind in named if f".{kind}" in IMAGE_SUFFIXES}
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    order: list[str] = []
    times: Counter[str] = Counter()
    for (name, place), (key, kind) in zip(members, named, strict=True):
        key, kind = (key, kind) if key in plain else _sample(name, first=False)
        times[name] += 1
        key = key if times[name] == 1 else f"{key}#{times[name]}"
        if f".{kind}" in IMAGE_SUFFIXES:
            kind = "image"
            if kind not in samples.get(key, {}):
                order.append(key)
        samples.setdefault(key, {}).setdefault(kind, place)
    return {key: [samples[key].get(kind, (0, MISSING)) for kind in ("image", "cls", "txt", "json")] for key in order}


def _listed(shard: str) -> list[tuple[str, tuple[int, int]]]:
    """Name and (offset, size) of each file in a shard, in order. Links are replaced by their targets."""
    listed: list[tuple[str, tuple[int, int] | str]] = []
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile() or member.islnk():  # a hard link points to an earlier member
                    own = (member.offset_data, member.size)
                    place = own if member.isfile() else places.get(normpath(member.linkname), (0, DANGLING))
                    places[normpath(member.name)] = place
                    listed.append((member.name, place))
                elif member.issym():  # may point to any member
                    listed.append((member.name, normpath(f"{dirname(member.name)}/{member.linkname}")))
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: cannot be read as an uncompressed tar file ({error})") from error
    found = ((name, places.get(place, (0, DANGLING)) if isinstance(place, str) else place) for name, place in listed)
    return [(name, place) for name, place in found if not basename(name).startswith(".")]


def _sample(name: str, first: bool) -> tuple[str, str]:
    """Sample and type of a file: its name, split at the first dot or at the last."""
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.partition(".") if first or "." not in file else file.rpartition(".")
    return folder + slash + stem, kind.lower()


def _is_number(content: bytes) -> bool:
    try:
        int(content)
    except ValueError:
        return False
    return True


def _member(shard: FileIO, member: np.void) -> bytes | None:
    """The bytes of one member, or None if there is no such member."""
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
