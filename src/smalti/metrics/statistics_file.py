"""Feature statistics of a reference set on disk: computed once, and protected against confusion with another set.

A safetensors file: `mean` (F,) and `covariance` (F, F) in float64, `features` (N, F) in float32 if they were kept.
Its metadata, all text:

    format          "smalti feature statistics"
    version         "1"
    kind            "rFID": originals that a tokenizer reconstructs; "gFID": images that a generator imitates
    network         name of the feature network
    weights_sha256  SHA-256 of the feature network's file
    count           number of images
    protocol        preparation of the images: the JSON object of `smalti.metrics.Protocol`
    images_sha256   SHA-256 of the prepared pixels, see `smalti.metrics.PixelHash`
    sha256          SHA-256 of the tensors and of all fields above

The reference for rFID is the same set that is reconstructed. The reference for gFID is usually another (the training
set, another crop, another resize filter). A wrong reference gives plausible numbers, so a file of the other kind is
refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smalti.formats.atomic import replace_file
from smalti.formats.weights import save_tensors
from smalti.metrics.feature_statistics import FeatureStatistics

FORMAT, VERSION = "smalti feature statistics", "1"

Kind = Literal["rFID", "gFID"]


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics of a reference set, and the fields that must agree in a comparison."""

    kind: Kind
    """Metric that they are a reference for."""
    statistics: FeatureStatistics
    """The feature statistics."""
    protocol: Mapping[str, Any]
    """Preparation of the images: `Protocol.to_dict`."""
    images_sha256: str
    """Hash of the prepared pixels."""


def write_statistics(path: str | Path, reference: ReferenceStatistics, force: bool = False) -> None:
    """Write a statistics file atomically.

    Raises:
        FileExistsError: `path` exists and `force` is off.
    """
    statistics = reference.statistics
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    if statistics.features is not None:
        tensors["features"] = statistics.features
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "kind": reference.kind,
        "network": statistics.network,
        "weights_sha256": statistics.weights_sha256,
        "count": str(statistics.count),
        "protocol": json.dumps(reference.protocol, sort_keys=True),
        "images_sha256": reference.images_sha256,
    }
    metadata["sha256"] = _digest(tensors, metadata)
    with replace_file(path, force) as temporary:
        save_tensors(tensors, temporary, metadata)


def read_statistics(path: str | Path, kind: Kind) -> ReferenceStatistics:
    """Read and check a statistics file.

    Args:
        path: the file.
        kind: the metric it is needed for.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a statistics file, unsupported version, damaged, or of the other kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"statistics: {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise ValueError(f"statistics: {path} is not a statistics file of smalti, or is damaged ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"statistics: {path} is not a statistics file of smalti: its metadata lack 'kind'")
    if metadata.get("version") != VERSION:
        raise ValueError(f"statistics: {path} has version {metadata.get('version')}, expected {VERSION}")
    if metadata.pop("sha256", None) != _digest(tensors, metadata):
        raise ValueError(f"statistics: {path} was altered: its checksum differs")
    if metadata["kind"] != kind:
        raise ValueError(f"statistics: {path} is a reference for {metadata['kind']} and cannot be used for {kind}")
    statistics = FeatureStatistics(
        network=metadata["network"],
        weights_sha256=metadata["weights_sha256"],
        count=int(metadata["count"]),
        mean=tensors["mean"],
        covariance=tensors["covariance"],
        features=tensors.get("features"),
    )
    found: Kind = "rFID" if metadata["kind"] == "rFID" else "gFID"
    return ReferenceStatistics(found, statistics, json.loads(metadata["protocol"]), metadata["images_sha256"])


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
