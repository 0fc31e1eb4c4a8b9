"""The commands of the command line as Python functions: `smalti.encode_file("photo.jpg", "photo.tokens")`.

The options of the command are keyword arguments. A group of options is a dict: `optimization={"steps": 100}` means
`--optimization.steps 100`. The functions return the results of the jobs.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from smalti.formats.arguments import check_arguments, checked, construct
from smalti.jobs.decode import FROM_FILE, DecodeConfig, DecodedImage, decode
from smalti.jobs.encode import EncodeConfig, EncodeResult, encode
from smalti.jobs.evaluate import EvaluateConfig, EvaluationResult
from smalti.jobs.evaluate import evaluate as evaluate_job
from smalti.jobs.export import ExportConfig, ExportResult
from smalti.jobs.export import export as export_job
from smalti.jobs.sample import SampleConfig, SampleResult
from smalti.jobs.sample import sample as sample_job
from smalti.jobs.tokenize import TokenizeConfig, TokenizeResult
from smalti.jobs.tokenize import tokenize as tokenize_job
from smalti.jobs.train import TrainResult
from smalti.jobs.train import train as train_job
from smalti.jobs.train_config import ModelDefaults, TrainConfig
from smalti.zoo import DEFAULT

__all__ = ["decode_file", "encode_file", "evaluate", "export", "sample", "tokenize", "train"]

Config = TypeVar("Config")
Name = str | Path


@checked
def train(data: Name, out: Name, **options: Any) -> TrainResult:
    """Train a tokenizer on images: `smalti train DATA --out OUT`.

    >>> smalti.train("photos", "runs/photos", init_from="photo-f8", optimization={"steps": 500})  # doctest: +SKIP

    Args:
        data: a folder of images, or any other source that the command takes.
        out: run directory to write.
        options: fields of `TrainConfig`. Their defaults depend on the model, as for the command.
    """
    check_arguments(TrainConfig, options)
    suited = ModelDefaults.of(options.get("model", "auto"), options.get("init_from", ""))
    defaults = {field.name: getattr(suited, field.name) for field in fields(suited)}
    return train_job(_config(TrainConfig, {**options, "data": data, "out": out}, defaults))


@checked
def evaluate(data: Name, model: Name = DEFAULT, **options: Any) -> EvaluationResult:
    """Measure a tokenizer on a set of images: `smalti eval MODEL DATA`; options are fields of `EvaluateConfig`."""
    return evaluate_job(_config(EvaluateConfig, {**options, "data": data, "run": model}))


@checked
def encode_file(images: Name | Sequence[Name], out: Name, model: Name = DEFAULT, **options: Any) -> EncodeResult:
    """Encode images into a token file: `smalti encode MODEL IMAGES... -o OUT`; options are fields of `EncodeConfig`."""
    names = [images] if isinstance(images, str | Path) else images
    return encode(_config(EncodeConfig, {**options, "images": list(map(str, names)), "out": out, "run": model}))


@checked
def decode_file(tokens: Name, out: Name, model: Name = FROM_FILE, **options: Any) -> tuple[DecodedImage, ...]:
    """Decode a token file into images: `smalti decode MODEL TOKENS OUT`; options are fields of `DecodeConfig`."""
    return decode(_config(DecodeConfig, {**options, "tokens": tokens, "out": out, "run": model}))


@checked
def tokenize(data: Name, out: Name, model: Name = DEFAULT, **options: Any) -> TokenizeResult:
    """Make a token data set: `smalti tokenize MODEL DATA --out OUT`; options are fields of `TokenizeConfig`."""
    return tokenize_job(_config(TokenizeConfig, {**options, "data": data, "out": out, "run": model}))


@checked
def sample(prior: Name, out: Name, **options: Any) -> SampleResult:
    """Sample images from a trained prior: `smalti sample PRIOR --out OUT`; options are fields of `SampleConfig`."""
    return sample_job(_config(SampleConfig, {**options, "prior": prior, "out": out}))


@checked
def export(model: Name, out: Name, format: str, **options: Any) -> ExportResult:
    """Write a tokenizer in another format: `smalti export MODEL OUT --format FORMAT`; options are those of
    `ExportConfig`."""
    return export_job(_config(ExportConfig, {**options, "model": model, "out": out, "format": format}))


def _config(
    config_class: type[Config], options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Config:
    """A config from keyword arguments.

    Args:
        config_class: the dataclass of the config.
        options: values by field; a dict changes the fields of a nested config that it names.
        defaults: values that replace the defaults of the config.

    Raises:
        ValueError: an unknown field, or a value of the wrong type.
    """
    hints = typing.get_type_hints(config_class)
    values = dict(defaults or {})
    for name, value in options.items():
        if name not in hints:
            raise ValueError(f"{name}: not an option, expected one of {', '.join(hints)}")
        if is_dataclass(hints[name]) and isinstance(value, Mapping):
            nested = values[name] if name in values else _default(config_class, name)
            table = {**{field.name: getattr(nested, field.name) for field in fields(nested)}, **value}
            values[name] = _config(type(nested), table)
        else:
            values[name] = _as_typed(value, hints[name])
    return construct(config_class, values)


def _default(config_class: Any, name: str) -> Any:
    """The default value of a field with a default factory."""
    (factory,) = (field.default_factory for field in fields(config_class) if field.name == name)
    assert callable(factory)
    return factory()


def _as_typed(value: Any, hint: Any) -> Any:
    """The value in the type of the field: text or path as the other, a list as a tuple."""
    kinds = {hint, *typing.get_args(hint)}
    if isinstance(value, str | Path):
        return Path(value) if Path in kinds else str(value)
    takes_tuple = tuple in {typing.get_origin(kind) for kind in kinds}
    return tuple(value) if isinstance(value, list) and takes_tuple else value
