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
from smalti.zoo.box import is_boxed
from smalti.zoo.models import TOKENIZERS
from smalti.zoo.published import (
    chameleon,
    cosmos_di,
    dalle_dvae,
    diffusers_vq,
    emu3,
    emu35_ibq,
    ibq,
    janus,
    latent_diffusion,
    llamagen,
    maskbit,
    maskgit,
    movqgan,
    open_magvit2,
    rqvae,
    showo_magvit2,
    simvq,
    taming,
    titok,
    var,
    wetok,
)
from smalti.zoo.published.checkpoints import AVERAGES, Candidate, Checkpoint, locate, read_checkpoint
from smalti.zoo.published.family import Family
from smalti.zoo.published.fitting import Disagreement, compare, expected_shapes, load_into, reshaped
from smalti.zoo.published.names import decoder_levels
from smalti.zoo.published.rivals import RIVALS

FAMILIES: dict[str, Family] = {
    "var": var.FAMILY,
    "titok": titok.FAMILY,
    "llamagen": llamagen.FAMILY,
    "maskgit": maskgit.FAMILY,
    "maskbit": maskbit.FAMILY,
    "simvq": simvq.FAMILY,
    "movqgan": movqgan.FAMILY,
    "rqvae": rqvae.FAMILY,
    "showo-magvit2": showo_magvit2.FAMILY,
    "cosmos-di": cosmos_di.FAMILY,
    "dalle-dvae": dalle_dvae.FAMILY,
    "ibq": ibq.FAMILY,
    "open-magvit2": open_magvit2.FAMILY,
    "wetok": wetok.FAMILY,
    "emu3": emu3.FAMILY,
    "diffusers": diffusers_vq.FAMILY,
    "chameleon": chameleon.FAMILY,
    "janus": janus.FAMILY,
    "latent-diffusion": latent_diffusion.FAMILY,
    "taming": taming.FAMILY,
    "emu35-ibq": emu35_ibq.FAMILY,
}
"""Families by name; the first that recognises a checkpoint gets it, or a rival of that one (`rivals.py`)."""

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
    why: str
    """How the family was found."""
    assumed: Mapping[str, Any]
    """Options that tensors do not tell and nobody gave, with their published values."""

    def __str__(self) -> str:
        """Family and why, sizes, what was assumed, licence: a sentence for the log."""
        source, tokenizer = self.tokenizer.config()["source"], self.tokenizer
        weights = sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6
        assumed = ", ".join(f"{name}={value!r}" for name, value in self.assumed.items()) or "nothing"
        return (
            f"{source['title']} (family {self.family}, {self.why}): {type(tokenizer).__name__} with {weights:.2f} "
            f"million weights, {tokenizer.vocab_size} codes, stride {tokenizer.stride}; assumed: {assumed}; "
            f"licence: {source['licence']}"
        )


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
        ValueError: a file that is damaged or would have to run code, an unknown family or option, tensors that fit two
            families with other tokens, or that do not fit; the message lists missing, surplus and differently shaped
            ones, the ten nearest first.
    """
    return read_published(path, family, **options).tokenizer


def read_published(path: str | Path, family: str | None = None, **options: Any) -> Published:
    """As `load_published`, with what was found on the way."""
    checkpoint = read_checkpoint(path)
    name, candidate, why = _choose(checkpoint, family)
    published = _build(checkpoint, name, candidate, options, why)
    logger.info("%s: %s", checkpoint.path, published)
    if published.ignored:
        logger.info("%s: ignored %s", checkpoint.path, ", ".join(published.ignored))
    return published


def _choose(checkpoint: Checkpoint, family: str | None) -> tuple[str, Candidate, str]:
    """The family, the table of tensors that belongs to it, and how the family was found."""
    family = family and family.replace("_", "-")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family: got {family!r}, expected one of {', '.join(FAMILIES)}")
    wanted = FAMILIES if family is None else {family: FAMILIES[family]}
    fitting = [(name, c) for name, row in wanted.items() for c in checkpoint.candidates if row.recognises(c)]
    if fitting:
        name = fitting[0][0]
        tables = [candidate for found, candidate in fitting if found == name]
        # The first table, or the averaged one where the publisher uses that
        candidate = min(tables, key=lambda c: FAMILIES[name].averaged and "ema" not in c.place.split("."))
        return (name, candidate, "as asked for") if family else _between_rivals(checkpoint.path, name, candidate)
    known = {(name, i): _known(row, c) for name, row in wanted.items() for i, c in enumerate(checkpoint.candidates)}
    (name, i), best = max(known.items(), key=lambda item: item[1])
    if best == 0 and family is None:
        some = ", ".join(list(checkpoint.candidates[0].tensors)[:10])
        raise ValueError(
            f"checkpoint: {checkpoint.path} fits no family ({', '.join(FAMILIES)}); its tensors are called {some}"
        )
    return name, checkpoint.candidates[i], "as asked for" if family else "the nearest"


def _between_rivals(path: Path, name: str, candidate: Candidate) -> tuple[str, Candidate, str]:
    """The family that was recognised, or the other one that looks alike, with the reason.

    Raises:
        ValueError: nothing tells them apart.
    """
    for rivals in RIVALS:
        if name in rivals.families:
            verdict = rivals.tell(candidate)
            if verdict is None:
                either = " or ".join(f"family={found!r}" for found in rivals.families)
                raise ValueError(
                    f"family: {path} fits {' and '.join(rivals.families)}, whose tokens differ ({rivals.difference}), "
                    f"and nothing in or beside the file tells them apart; give {either}"
                )
            return verdict[0], candidate, verdict[1]
    return name, candidate, "by the names of its tensors"


def _known(family: Family, candidate: Candidate) -> int:
    return len(family.names(candidate).translate(candidate.tensors))


def _build(checkpoint: Checkpoint, name: str, candidate: Candidate, options: Mapping[str, Any], why: str) -> Published:
    family = FAMILIES[name]
    parameters = _check_options(name, options)
    skip = re.compile(rf"{TRAINING}|{family.ignored}" if family.ignored else TRAINING)
    used, theirs = _used(family, candidate, skip)
    table = family.names(candidate)
    ours = table.translate(used)
    tensors = family.convert({ours.get(key, key): tensor for key, tensor in used.items()})
    source = {"family": name, "title": family.title, "url": family.url, "licence": family.licence}
    shapes = {new: tuple(candidate.tensors[old].shape) for old, new in table.translate(candidate.tensors).items()}
    shapes |= {key: tuple(tensor.shape) for key, tensor in tensors.items() if key in shapes}
    told = {**family.facts(candidate), **options}
    try:
        tokenizer = family.build(shapes, candidate.config, source, **told)
    except (ValueError, TypeError) as error:
        unknown = Disagreement(missing=(), surplus=tuple(key for key in used if key not in ours), shapes=())
        reasons = f"{error}; {unknown}" if unknown else str(error)
        raise ValueError(f"checkpoint: {checkpoint.path} as family {name!r}: {reasons}") from error
    originals = {ours.get(key, key): theirs[key] for key in used}
    _fit(checkpoint.path, name, tokenizer, tensors, originals, table)
    assumed = {key: value for key, value in parameters.items() if key not in told and value is not None}
    return Published(
        tokenizer.eval(), name, candidate.place, _ignored(checkpoint, candidate, skip, family), why, assumed
    )


def _used(family: Family, candidate: Candidate, skip: re.Pattern[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to load by their names, averaged where the family uses that, and what each is called in the file."""
    raw = {key: tensor for key, tensor in candidate.tensors.items() if not skip.match(key)}
    averages = {key: candidate.averages.get(key.replace(".", "")) for key in raw}
    if not family.averaged or all(tensor is None for tensor in averages.values()):
        return raw, {key: key for key in raw}
    frozen = {key: raw[key] for key in raw if family.frozen and re.match(family.frozen, key)}
    used = frozen | {key: tensor for key, tensor in averages.items() if tensor is not None}
    return used, {key: key if key in frozen else AVERAGES + key.replace(".", "") for key in raw}


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


def _check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a family with their published values, after a look at those that were given."""
    parameters = {p.name: p.default for p in list(inspect.signature(FAMILIES[name].build).parameters.values())[3:]}
    for key in options:
        if key not in parameters:
            raise ValueError(f"{key}: not an option of {name}, which has {', '.join(parameters)}")
    return parameters


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
