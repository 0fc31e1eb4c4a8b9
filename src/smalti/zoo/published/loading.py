"""Loads a published checkpoint into a tokenizer or prior of smalti.

The steps: read the file (`checkpoints.py`), find the family that knows the names (one file each), translate them
(`names.py`), build a model for the shapes (`inference.py`), compare every tensor (`fitting.py`), copy.
"""

import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from torch import Tensor, nn

from smalti.checks import one_of
from smalti.models import WEIGHTS
from smalti.tokenizers import Tokenizer
from smalti.zoo.published.checkpoints import AVERAGES, Candidate, Checkpoint, read_checkpoint
from smalti.zoo.published.family import Family, Model
from smalti.zoo.published.fitting import Disagreement, compare, expected_shapes, load_into, reshaped
from smalti.zoo.published.names import NameTable, decoder_levels
from smalti.zoo.published.rivals import RIVALS

TRAINING = r"(loss|discriminator|disc|perceptual_loss|lpips|inception_model|logvar|colorize)(\.|$)"
"""Pattern for the start of names that only training needs, in all families."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published(Generic[Model]):
    """A published model and its origin."""

    model: Model
    """The model, in eval mode."""
    source: Mapping[str, str]
    """Family, title, url and licence."""
    place: str
    """Place of its tensors in the file, such as "state_dict" or "ema"."""
    ignored: tuple[str, ...]
    """Ignored parts of the file: optimizer, loss, discriminator …"""
    why: str
    """Reason for the choice of the family."""
    assumed: Mapping[str, Any]
    """Options that neither the file nor the user defines, with their published values."""

    @property
    def family(self) -> str:
        """Key of the family."""
        return self.source["family"]

    def __str__(self) -> str:
        """One sentence for the log: family and reason, size, assumptions, licence."""
        weights = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        assumed = ", ".join(f"{name}={value!r}" for name, value in self.assumed.items()) or "nothing"
        size = f"{type(self.model).__name__} with {weights:.2f} million weights"
        if isinstance(self.model, Tokenizer):
            size += f", {self.model.vocab_size} codes, stride {self.model.stride}"
        return (
            f"{self.source['title']} (family {self.family}, {self.why}): {size}; assumed: {assumed}; "
            f"licence: {self.source['licence']}"
        )


def read_model(
    path: str | Path, families: Mapping[str, Family[Model]], family: str | None, options: Mapping[str, Any]
) -> Published[Model]:
    """The model in a checkpoint, in eval mode, with weights in fp32, and facts about its origin.

    Args:
        path: a file or folder, see `read_checkpoint`.
        families: candidates. The first that recognises the checkpoint is taken, or a rival of it (`rivals.py`).
        family: a key of `families`; None: recognised by the tensor names.
        options: keyword arguments of the family's `build`.

    Raises:
        FileNotFoundError, ValueError: see `load_published`.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.path.name == WEIGHTS and "type" in checkpoint.candidates[0].config:  # its class, in our config.json
        raise ValueError(
            f"checkpoint: got {path}, expected a published checkpoint; it already is a model of smalti, which every "
            "command takes as it is"
        )
    name, candidate, why = _choose(checkpoint, families, family)
    published = _build(checkpoint, name, families[name], candidate, options, why)
    logger.info("%s: %s", checkpoint.path, published)
    if published.ignored:
        logger.info("%s: ignored %s", checkpoint.path, ", ".join(published.ignored))
    return published


def _choose(
    checkpoint: Checkpoint, families: Mapping[str, Family[Model]], family: str | None
) -> tuple[str, Candidate, str]:
    """The family, its table of tensors, and the reason for the choice."""
    family = family and family.replace("_", "-")
    if family is not None:
        one_of(tuple(families), family=family)
    wanted = families if family is None else {family: families[family]}
    fitting = [(name, c) for name, row in wanted.items() for c in checkpoint.candidates if row.recognises(c)]
    if fitting:
        name = fitting[0][0]
        tables = [candidate for found, candidate in fitting if found == name]
        # The first table, or the averaged one if the publisher uses averaged weights
        candidate = min(tables, key=lambda c: families[name].averaged and "ema" not in c.place.split("."))
        return (name, candidate, "as requested") if family else _between_rivals(checkpoint.path, name, candidate)
    known = {(name, i): _known(row, c) for name, row in wanted.items() for i, c in enumerate(checkpoint.candidates)}
    (name, i), best = max(known.items(), key=lambda item: item[1])
    if best == 0 and family is None:
        some = ", ".join(list(checkpoint.candidates[0].tensors)[:10])
        raise ValueError(
            f"checkpoint: {checkpoint.path} fits no family ({', '.join(families)}); its first tensors are {some}"
        )
    return name, checkpoint.candidates[i], "as requested" if family else "the nearest family"


def _between_rivals(path: Path, name: str, candidate: Candidate) -> tuple[str, Candidate, str]:
    """The recognised family or its rival, with the reason.

    Raises:
        ValueError: nothing tells the two apart.
    """
    for rivals in RIVALS:
        if name in rivals.families:
            verdict = rivals.tell(candidate)
            if verdict is None:
                either = " or ".join(f"family={found!r}" for found in rivals.families)
                raise ValueError(
                    f"family: {path} fits {' and '.join(rivals.families)}, whose tokens differ ({rivals.difference}), "
                    f"and nothing in or beside the file tells them apart; give {either}, "
                    "or convert it first with smalti import"
                )
            return verdict[0], candidate, verdict[1]
    return name, candidate, "by the names of its tensors"


def _known(family: Family[Any], candidate: Candidate) -> int:
    return len(family.names(candidate).translate(candidate.tensors))


def _build(
    checkpoint: Checkpoint,
    name: str,
    family: Family[Model],
    candidate: Candidate,
    options: Mapping[str, Any],
    why: str,
) -> Published[Model]:
    parameters = _check_options(name, family, options)
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
        model = family.build(shapes, candidate.config, source, **told)
    except (ValueError, TypeError) as error:
        unknown = Disagreement(missing=(), surplus=tuple(key for key in used if key not in ours), shapes=())
        reasons = f"{error}; {unknown}" if unknown else str(error)
        raise ValueError(f"checkpoint: {checkpoint.path} as family {name!r}: {reasons}") from error
    originals = {ours.get(key, key): theirs[key] for key in used}
    _fit(f"checkpoint: {checkpoint.path} as family {name!r}", family, model, tensors, originals, table)
    assumed = {key: value for key, value in parameters.items() if key not in told and value is not None}
    return Published(model.eval(), source, candidate.place, _ignored(checkpoint, candidate, skip, family), why, assumed)


def _used(family: Family[Any], candidate: Candidate, skip: re.Pattern[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to load, by name, averaged if the family uses averages; and the name of each in the file."""
    raw = {key: tensor for key, tensor in candidate.tensors.items() if not skip.match(key)}
    averages = {key: candidate.averages.get(key.replace(".", "")) for key in raw}
    if not family.averaged or all(tensor is None for tensor in averages.values()):
        return raw, {key: key for key in raw}
    frozen = {key: raw[key] for key in raw if family.frozen and re.match(family.frozen, key)}
    used = frozen | {key: tensor for key, tensor in averages.items() if tensor is not None}
    return used, {key: key if key in frozen else AVERAGES + key.replace(".", "") for key in raw}


def _fit(
    what: str,
    family: Family[Any],
    model: nn.Module,
    tensors: dict[str, Tensor],
    originals: dict[str, str],
    table: NameTable,
) -> None:
    """Copy the tensors into the model, or report all tensors that do not fit."""
    expected = expected_shapes(model, split_qkv=any(".q." in key for key in tensors))
    if family.supplied:
        expected = {key: shape for key, shape in expected.items() if not re.match(family.supplied, key)}
    levels = decoder_levels(expected)
    originals = {key: table.original(key, levels) for key in expected} | originals
    tensors = reshaped(tensors, expected)
    if difference := compare(expected, tensors, originals):
        fits = len(expected) - len(difference.missing) - len(difference.shapes)
        raise ValueError(f"{what}, the nearest family: only {fits} of {len(expected)} tensors fit; {difference}")
    load_into(model, tensors)


def _check_options(name: str, family: Family[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a family, checked; published values where the user gives none."""
    parameters = {p.name: p.default for p in list(inspect.signature(family.build).parameters.values())[3:]}
    for key in options:
        if key not in parameters:
            raise ValueError(f"{key}: not an option of {name}, expected one of {', '.join(parameters)}")
    return parameters


def _ignored(
    checkpoint: Checkpoint, candidate: Candidate, skip: re.Pattern[str], family: Family[Any]
) -> tuple[str, ...]:
    """Ignored parts: top-level entries of the file, and groups of tensors with their count."""
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
