"""Published tokenizers, loaded by one line: `load_published("vq_ds16_c2i.pt")`.

The steps: read the file (`checkpoints.py`), find the family that knows the names (one file each, listed in `FAMILIES`),
translate them (`names.py`), infer the sizes from the shapes (`inference.py`), build the model, compare every tensor
(`fitting.py`), copy.
"""

import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smalti.formats.saved_model import read_config
from smalti.tokenizers import Tokenizer
from smalti.zoo import (
    chameleon,
    diffusers_vq,
    emu3,
    ibq,
    janus,
    latent_diffusion,
    llamagen,
    maskgit,
    open_magvit2,
    taming,
    titok,
    var,
)
from smalti.zoo.box import is_boxed
from smalti.zoo.checkpoints import AVERAGES, Candidate, Checkpoint, locate, read_checkpoint
from smalti.zoo.family import Family
from smalti.zoo.fitting import Disagreement, compare, expected_shapes, load_into, reshaped
from smalti.zoo.models import TOKENIZERS
from smalti.zoo.names import decoder_levels

FAMILIES: dict[str, Family] = {
    "var": var.FAMILY,
    "titok": titok.FAMILY,
    "llamagen": llamagen.FAMILY,
    "maskgit": maskgit.FAMILY,
    "ibq": ibq.FAMILY,
    "open-magvit2": open_magvit2.FAMILY,
    "emu3": emu3.FAMILY,
    "diffusers": diffusers_vq.FAMILY,
    "chameleon": chameleon.FAMILY,
    "janus": janus.FAMILY,
    "latent-diffusion": latent_diffusion.FAMILY,
    "taming": taming.FAMILY,
}
"""Families by name; the first that recognises a checkpoint gets it."""

TRAINING = r"(loss|discriminator|disc|perceptual_loss|lpips|inception_model|logvar|colorize)(\.|$)"
"""Names (their start) of tensors that only training needs, in any family."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A published tokenizer and where it came from."""

    tokenizer: Tokenizer
    """The model in eval mode."""
    family: str
    """Key in `FAMILIES`."""
    place: str
    """Where in the file its tensors were, such as "state_dict" or "ema"."""
    ignored: tuple[str, ...]
    """What the file holds besides: optimizer, loss, discriminator …"""


def is_published(path: str | Path) -> bool:
    """Whether a path is a publisher's file or folder, not a saved model of ours, no name of the box or on the hub.

    Raises:
        ValueError: a config.json that is none.
    """
    folder = Path(path)
    if is_boxed(path):
        return False
    if not folder.is_dir():
        return folder.is_file()
    if (folder / "config.json").is_file():
        return read_config(folder / "config.json").get("type") not in TOKENIZERS
    try:
        locate(folder)
    except FileNotFoundError:
        return False
    except ValueError:  # several files of weights: the loader says which
        return True
    return True


def load_published(path: str | Path, family: str | None = None, **options: Any) -> Tokenizer:
    """A published tokenizer from its publisher's checkpoint, in eval mode, weights in fp32.

    >>> tokenizer = load_published("vq_ds16_c2i.pt")  # doctest: +SKIP
    >>> tokens = tokenizer.encode(images)  # doctest: +SKIP

    Args:
        path: a .pth .pt .ckpt .bin or .safetensors file, a folder with weights and config.json, or one of a pipeline.
        family: a key of `FAMILIES`; None: recognised by the tensor names.
        options: what cannot be inferred, published values by default: `patch_nums`, `metric` ("euclidean", "cosine",
            "dot"), `image_range`, `num_heads` …, as far as the family has them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged or would have to run code, an unknown family or option, or tensors that do
            not fit; the message lists missing, surplus and differently shaped tensors, the ten nearest first.
    """
    return read_published(path, family, **options).tokenizer


def read_published(path: str | Path, family: str | None = None, **options: Any) -> Published:
    """As `load_published`, with what was found on the way."""
    checkpoint = read_checkpoint(path)
    name, candidate = _choose(checkpoint, family)
    published = _build(checkpoint, name, candidate, options)
    if published.ignored:
        logger.info("%s: ignored %s", checkpoint.path, ", ".join(published.ignored))
    return published


def _choose(checkpoint: Checkpoint, family: str | None) -> tuple[str, Candidate]:
    """The family and the table of tensors that belongs to it."""
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family: got {family!r}, expected one of {', '.join(FAMILIES)}")
    wanted = FAMILIES if family is None else {family: FAMILIES[family]}
    fitting = [(name, c) for name, row in wanted.items() for c in checkpoint.candidates if row.recognises(c)]
    if fitting:
        name = fitting[0][0]
        tables = [candidate for found, candidate in fitting if found == name]
        # The first table, or the averaged one where the publisher uses that
        return name, min(tables, key=lambda c: FAMILIES[name].averaged and "ema" not in c.place.split("."))
    known = {(name, i): _known(row, c) for name, row in wanted.items() for i, c in enumerate(checkpoint.candidates)}
    (name, i), best = max(known.items(), key=lambda item: item[1])
    if best == 0 and family is None:
        some = ", ".join(list(checkpoint.candidates[0].tensors)[:10])
        raise ValueError(
            f"checkpoint: {checkpoint.path} fits no family ({', '.join(FAMILIES)}); its tensors are called {some}"
        )
    return name, checkpoint.candidates[i]


def _known(family: Family, candidate: Candidate) -> int:
    return len(family.names(candidate).translate(candidate.tensors))


def _build(checkpoint: Checkpoint, name: str, candidate: Candidate, options: Mapping[str, Any]) -> Published:
    family = FAMILIES[name]
    _check_options(name, options)
    skip = re.compile(rf"{TRAINING}|{family.ignored}" if family.ignored else TRAINING)
    used = {key: tensor for key, tensor in candidate.tensors.items() if not skip.match(key)}
    theirs = {key: key for key in used}
    if family.averaged and any(key.replace(".", "") in candidate.averages for key in used):
        theirs = {key: AVERAGES + key.replace(".", "") for key in used}
        averages = candidate.averages
        used = {key: averages[key.replace(".", "")] for key in used if key.replace(".", "") in averages}
    table = family.names(candidate)
    ours = table.translate(used)
    tensors = {ours.get(key, key): tensor for key, tensor in used.items()}
    source = {"family": name, "title": family.title, "url": family.url, "licence": family.licence}
    shapes = {new: tuple(candidate.tensors[old].shape) for old, new in table.translate(candidate.tensors).items()}
    shapes |= {key: tuple(tensor.shape) for key, tensor in tensors.items() if key in shapes}
    try:
        tokenizer = family.build(shapes, candidate.config, source, **options)
    except (ValueError, TypeError) as error:
        unknown = Disagreement(missing=(), surplus=tuple(key for key in used if key not in ours), shapes=())
        reasons = f"{error}; {unknown}" if unknown else str(error)
        raise ValueError(f"checkpoint: {checkpoint.path} as family {name!r}: {reasons}") from error
    originals = {ours.get(key, key): theirs[key] for key in used}
    _fit(checkpoint.path, name, tokenizer, tensors, originals, table)
    return Published(tokenizer.eval(), name, candidate.place, _ignored(checkpoint, candidate, skip, family))


def _fit(
    path: Path, name: str, tokenizer: Tokenizer, tensors: dict[str, Tensor], originals: dict[str, str], table: Any
) -> None:
    """Copy the tensors into the model, or say all that does not fit."""
    expected = expected_shapes(tokenizer, split_qkv=any(".q." in key for key in tensors))
    levels = decoder_levels(expected)
    originals = {key: table.original(key, levels) for key in expected} | originals
    tensors = reshaped(tensors, expected)
    if difference := compare(expected, tensors, originals):
        fits = len(expected) - len(difference.missing) - len(difference.shapes)
        raise ValueError(
            f"checkpoint: {path} as family {name!r}, the nearest: "
            f"only {fits} of {len(expected)} tensors fit; {difference}"
        )
    load_into(tokenizer, tensors)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(FAMILIES[name].build).parameters)[3:]
    for key in options:
        if key not in parameters:
            raise ValueError(f"{key}: not an option of {name}, which has {', '.join(parameters)}")


def _ignored(checkpoint: Checkpoint, candidate: Candidate, skip: re.Pattern[str], family: Family) -> tuple[str, ...]:
    """What was left out: top entries of the file, and groups of tensors with their number."""
    top = candidate.place.split(".")[0]
    names = [key for key in candidate.tensors if skip.match(key)] + list(candidate.rest)
    if not family.averaged:
        names += [AVERAGES + key for key in candidate.averages]
    groups: dict[str, list[str]] = {}
    for key in names:
        groups.setdefault(key.split(".")[0], []).append(key)
    groups = {group if len(keys) > 1 else keys[0]: keys for group, keys in groups.items()}
    entries = [entry for entry in checkpoint.entries if top and entry != top]
    return (*entries, *(f"{group} ({len(keys)} tensors)" if len(keys) > 1 else group for group, keys in groups.items()))
