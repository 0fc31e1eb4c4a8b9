"""Tokenize a set of images once, to train on the tokens many times.

The set is cut into shards of so many images each. A shard is a pure function of the plan (tokenizer, images, crops,
shard size) and its number: whoever makes it, in whatever process and order, makes the same bytes. Everything else
follows from that. A job that was killed goes on by making the shards that are missing; a cluster makes them in any
order (`tokenize_ray.py`); and the result is the same.

Tokens could depend on the batch in which an image is encoded: arithmetic in other batches rounds differently, and a
vector between two codes falls to the other side. So on the CPU the network always gets the same `CPU_BATCH` images of a
shard together, whatever the batch size. On other devices the batch size decides, and the manifest says how many tokens
change when images are encoded one by one.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from smalti.data import ImageSource, open_images
from smalti.data.views import ViewedImage, ViewsConfig, view_batches
from smalti.formats.storage import Storage
from smalti.formats.token_set import MANIFEST, Shard, TokenManifest, read_manifest, shard_name, write_manifest
from smalti.formats.token_shards import TokenRow, write_shard
from smalti.jobs.preparation import Size, open_tokenizer, target_size
from smalti.tokenizers import Tokenizer
from smalti.training.runtime import find_device

__all__ = ["Plan", "ShardNote", "TokenizeConfig", "TokenizeResult", "make_shards", "tokenize"]

CPU_BATCH = 16
"""Images that a CPU encodes together, always."""
PLAN = "progress/plan.json"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class TokenizeConfig:
    """Turn a set of images into a token data set."""

    run: str
    """Folder of a trained tokenizer (config.json, model.safetensors), or its name on the hub."""
    data: str
    """Images: a folder, tar shards, Parquet, a hub data set, or a name such as fashion-mnist."""
    out: str
    """The token data set to make: a folder, or a URL such as s3://bucket/tokens."""
    size: Size = "trained"
    """Size of what is tokenized: a side or [height, width] (resized to cover it, then cropped), "native" for each
    image's own, "trained" for the size in RUN/train.yaml."""
    crops: int = 1
    """Crops of each image: the first is the centre, further ones lie anywhere, the same ones in every run."""
    mirrored: bool = False
    """Tokenize each crop's mirror image, too."""
    zoom: float = 1.0
    """Largest random enlargement before the crops after the first."""
    seed: int = 0
    """Decides where random crops lie."""
    shard_images: int = 1024
    """Images of one shard."""
    batch_size: int = 64
    """Images encoded together on a GPU; a CPU always takes 16, so that no option changes its tokens."""
    workers: int = 0
    """Processes that read images."""
    engine: Literal["local", "ray"] = "local"
    """Where shards are made: in this process, or on a Ray cluster."""
    ray_workers: int = 2
    """Most workers on the Ray cluster; each loads the tokenizer once."""
    device: str = "auto"
    """Where to compute: "cpu", "cuda", ..., or "auto" for cuda if there is one."""
    force: bool = False
    """Replace a token data set of other images or settings."""

    def __post_init__(self) -> None:
        for name in ("shard_images", "batch_size", "ray_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.workers < 0:
            raise ValueError(f"workers: got {self.workers}, expected at least 0")
        if self.shard_images % CPU_BATCH:
            raise ValueError(f"shard_images: got {self.shard_images}, expected a multiple of {CPU_BATCH}")


@dataclass(frozen=True)
class Plan:
    """All that decides the bytes of a shard, and how to get at it."""

    run: str
    """The tokenizer."""
    data: str
    """The images."""
    fingerprint: str
    """Of the tokenizer."""
    vocab_size: int
    """Of the tokenizer."""
    images_sha256: str
    """Of the keys of all images."""
    views: dict[str, Any]
    """Fields of `ViewsConfig`."""
    shard_images: int
    """Images of a shard."""
    device_batch: int
    """Images that the network gets together."""

    @property
    def identity(self) -> dict[str, Any]:
        """What an interrupted job must share with the one that goes on: not where things lie."""
        return {key: value for key, value in asdict(self).items() if key not in ("run", "data")}


@dataclass(frozen=True)
class ShardNote:
    """What is known of a finished shard until the manifest is written."""

    shard: Shard
    """Its line in the manifest."""
    unreadable: dict[str, str]
    """Images of it that could not be read."""
    grids: list[list[int]] | None
    """Grids of its rows; None where they differ, or where there is no row."""
    image_size: list[int] | None
    """Size of what was tokenized; None where it differs."""


@dataclass(frozen=True)
class TokenizeResult:
    """What was made."""

    out: str
    """The token data set."""
    images: int
    """Images tokenized, now or by an earlier run."""
    rows: int
    """Rows: images times views."""
    tokens: int | None
    """Tokens of a row; None where images differ in size."""
    shards: int
    """Shards, of which `made` were made now."""
    made: int
    """Shards made by this run; the others were there."""
    unreadable: dict[str, str]
    """Images that could not be read."""
    batch_mismatch: float | None
    """See `TokenManifest.batch_mismatch`."""


def tokenize(config: TokenizeConfig, on_images: Callable[[int, int], None] | None = None) -> TokenizeResult:
    """Make a token data set, or finish one.

    Args:
        config: which tokenizer, which images, where to.
        on_images: told (images done, images in all) again and again, for a progress bar.

    Raises:
        FileNotFoundError: no such run or data.
        FileExistsError: another token data set, or something else, is in the folder, and `force` is off.
        ValueError: a bad setting, or no image could be read.
    """
    device = find_device(config.device)
    tokenizer, storage = open_tokenizer(config.run).to(device), Storage(config.out)
    source = open_images(config.data, channels=tokenizer.image_channels)
    plan = _plan(config, tokenizer, source, device)
    numbers = range(-(-len(source) // plan.shard_images))
    if (done := _finished(storage, plan)) is None:
        _prepare(storage, plan, config, tokenizer)
        notes = _notes(storage)
        missing = [n for n in numbers if n not in notes]
        count = _Count(on_images, len(source), sum(_images_of(plan, n, len(source)) for n in notes))
        if config.engine == "ray":
            from smalti.jobs.tokenize_ray import make_on_ray

            for n in make_on_ray(config, plan, missing):
                count.add(_images_of(plan, n, len(source)))
        else:
            make_shards(plan, missing, storage, tokenizer, source, config.workers, count.add)
        done = _finish(storage, plan, tokenizer, source, device)
    else:
        missing = []
    return _result(config, done, len(missing))


def make_shards(
    plan: Plan,
    numbers: Iterable[int],
    storage: Storage,
    tokenizer: Tokenizer,
    source: ImageSource,
    workers: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Make shards, one after the other; the images of the next are read while one is encoded.

    Each is written, then the note that it is finished: a kill in between costs making it again, to the same bytes.
    """
    views = ViewsConfig(**plan.views)
    device = next(tokenizer.parameters()).device
    pieces = [
        (n, range(start, min(start + plan.device_batch, _end(plan, n, len(source)))))
        for n in numbers
        for start in range(n * plan.shard_images, _end(plan, n, len(source)), plan.device_batch)
    ]
    rows: list[TokenRow] = []
    unreadable: dict[str, str] = {}
    batches = view_batches(source, views, [indices for _, indices in pieces], workers)
    for i, ((number, indices), batch) in enumerate(zip(pieces, batches, strict=True)):
        rows += _encode(tokenizer, batch.images, device)
        unreadable |= batch.unreadable
        if i + 1 == len(pieces) or pieces[i + 1][0] != number:
            _write(storage, plan, number, rows, unreadable)
            rows, unreadable = [], {}
        if on_images is not None:
            on_images(len(indices))


# ---- one shard ------------------------------------------------------------------------------------------------------


def _end(plan: Plan, number: int, images: int) -> int:
    return min((number + 1) * plan.shard_images, images)


def _images_of(plan: Plan, number: int, images: int) -> int:
    return _end(plan, number, images) - number * plan.shard_images


def _encode(tokenizer: Tokenizer, images: list[ViewedImage], device: torch.device) -> list[TokenRow]:
    """All views of the images, in one batch for each size that occurs."""
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


def _write(storage: Storage, plan: Plan, number: int, rows: list[TokenRow], unreadable: dict[str, str]) -> None:
    data = write_shard(rows, plan.vocab_size)
    storage.write(shard_name(number), data)
    shard = Shard(shard_name(number), len(rows), len({row.key for row in rows}), hashlib.sha256(data).hexdigest())
    size = plan.views["size"]
    note = ShardNote(
        shard, unreadable, _common([row.grids for row in rows]), size or _common([row.image_size for row in rows])
    )
    storage.write(f"progress/{number:05d}.json", json.dumps(asdict(note)).encode())


def _common(values: list[Any]) -> Any:
    """The value that all share, in lists as JSON has them; None where they differ."""
    return json.loads(json.dumps(values[0])) if values and all(value == values[0] for value in values) else None


# ---- the whole set --------------------------------------------------------------------------------------------------


class _Count:
    """Images done, for a progress bar."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int, done: int):
        self.report, self.total, self.done = report, total, done
        self.add(0)

    def add(self, images: int) -> None:
        self.done += images
        if self.report is not None:
            self.report(self.done, self.total)


def _plan(config: TokenizeConfig, tokenizer: Tokenizer, source: ImageSource, device: torch.device) -> Plan:
    size = target_size(config.size, [config.run])
    views = ViewsConfig(None if size is None else list(size), config.crops, config.mirrored, config.zoom, config.seed)
    keys = "\n".join(source.key(index) for index in range(len(source)))
    return Plan(
        run=config.run,
        data=config.data,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        images_sha256=hashlib.sha256(keys.encode()).hexdigest(),
        views=asdict(views),
        shard_images=config.shard_images,
        device_batch=CPU_BATCH if device.type == "cpu" else config.batch_size,
    )


def _finished(storage: Storage, plan: Plan) -> TokenManifest | None:
    """The manifest of a complete set made by this very plan; None where there is none."""
    if not storage.exists(MANIFEST):
        return None
    manifest = read_manifest(storage)
    storage.remove("progress")  # a kill right after the manifest leaves it
    return manifest if manifest.transform == plan.identity else None


def _prepare(storage: Storage, plan: Plan, config: TokenizeConfig, tokenizer: Tokenizer) -> None:
    """Make the folder ready for shards: empty, or with those of an earlier run of the same plan."""
    begun = json.loads(storage.read(PLAN)) if storage.exists(PLAN) else None
    if begun == plan.identity:
        return
    names = [name for name in storage.names() if not name.startswith(TOKENIZER + "/")]
    if names and not config.force:
        what = "another token data set" if begun or MANIFEST in names else "files"
        raise FileExistsError(f"{storage}: holds {what}; choose another name, or --force to replace it")
    strangers = [name for name in names if not name.startswith(("progress/", "tokens-")) and name != MANIFEST]
    if strangers:
        raise FileExistsError(f"{storage}: holds {strangers[0]}, which is no part of a token data set")
    for name in names:
        storage.remove(name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in ("config.json", "model.safetensors"):
            storage.write(f"{TOKENIZER}/{file}", (Path(folder) / file).read_bytes())
    storage.write(PLAN, json.dumps(plan.identity, ensure_ascii=False).encode())


def _notes(storage: Storage) -> dict[int, ShardNote]:
    """Finished shards by their number; one whose file is gone is not finished."""
    notes = {}
    for name in storage.names("progress"):
        if name == PLAN:
            continue
        content = json.loads(storage.read(name))
        note = ShardNote(**{**content, "shard": Shard(**content["shard"])})
        if storage.exists(note.shard.file):
            notes[int(Path(name).stem)] = note
    return notes


def _finish(
    storage: Storage, plan: Plan, tokenizer: Tokenizer, source: ImageSource, device: torch.device
) -> TokenManifest:
    """Write the manifest, and take away what only an unfinished set needs."""
    notes = [note for _, note in sorted(_notes(storage).items())]
    filled = [note for note in notes if note.shard.rows]
    unreadable = {key: reason for note in notes for key, reason in note.unreadable.items()}
    if not filled:
        raise ValueError(
            f"none of the {len(source)} images of {plan.data} can be read: {next(iter(unreadable.values()))}"
        )
    manifest = TokenManifest(
        fingerprint=plan.fingerprint,
        vocab_size=plan.vocab_size,
        grids=_common([note.grids for note in filled]),
        image_size=_common([note.image_size for note in filled]),
        transform=plan.identity,
        source=plan.data,
        shards=[note.shard for note in notes],
        unreadable=unreadable,
        class_names=list(source.class_names),
        batch_mismatch=None if device.type == "cpu" else _mismatch(plan, tokenizer, source, device),
    )
    write_manifest(storage, manifest)
    storage.remove("progress")
    return manifest


def _mismatch(plan: Plan, tokenizer: Tokenizer, source: ImageSource, device: torch.device) -> float:
    """Share of tokens of the first batch that change when its images are encoded one by one."""
    indices = range(min(plan.device_batch, len(source)))
    images = next(iter(view_batches(source, ViewsConfig(**plan.views), [indices]))).images
    together = _encode(tokenizer, images, device)
    alone = [row for image in images for row in _encode(tokenizer, [image], device)]
    different = sum(int((a.indices != b.indices).sum()) for a, b in zip(together, alone, strict=True))
    return different / max(1, sum(len(row.indices) for row in together))


def _result(config: TokenizeConfig, manifest: TokenManifest, made: int) -> TokenizeResult:
    tokens = None if manifest.grids is None else sum(math.prod(grid) for grid in manifest.grids)
    return TokenizeResult(
        out=config.out,
        images=manifest.images,
        rows=manifest.rows,
        tokens=tokens,
        shards=len(manifest.shards),
        made=made,
        unreadable=manifest.unreadable,
        batch_mismatch=manifest.batch_mismatch,
    )
