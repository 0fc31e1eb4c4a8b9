"""Metric networks: pretrained networks that measure reconstructions and samples.

A network for pairs measures the perceptual distance of an image and its reconstruction (LPIPS). A network for sets
compares the features of all reconstructions with those of all images (FID, KID). LPIPS, rFID, gFID and the Inception
Score use the official weights, checked by hash, or are left out; every other measure is named after its network.

A network that was used to train a tokenizer overrates it and is therefore never used to evaluate it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from smalti.blocks import HEDVGG16, AlexNet, EfficientNetLite0, FeatureNetwork, FIDInception
from smalti.losses import LPIPS, FeatureDistance, PerceptualDistance, refuse_training_network
from smalti.metrics import FeatureExtractor, load_convolutional_features
from smalti.training import read_settings
from smalti.zoo import saved_folder

PAIR_JUDGES: dict[str, tuple[type[LPIPS] | type[FeatureDistance], type[FeatureNetwork]]] = {
    "lpips": (LPIPS, AlexNet),
    "hed_vgg16": (FeatureDistance, HEDVGG16),
}
"""Networks for pairs: name on the command line → distance, network."""

SET_JUDGES: dict[str, type[FeatureNetwork]] = {"fid_inception": FIDInception, "efficientnet_lite0": EfficientNetLite0}
"""Networks for sets: name on the command line → network. A path to a file of convolutional features is also allowed."""

AUTO = ("lpips", "fid_inception", "efficientnet_lite0")
"""The networks of "auto", if their weights are on this machine."""

SAMPLE_AUTO = tuple(SET_JUDGES)
"""The networks of "auto" for samples, which have no originals and can only be measured as a set."""

TITLES = {"lpips": "LPIPS", "hed_vgg16": "VGG16 feature distance", "fid_inception": "rFID"}
"""Name of the metric that is missing if a network is left out."""

SAMPLE_TITLES = {"fid_inception": "gFID and Inception Score"}


@dataclass(frozen=True, eq=False)
class Judges:
    """The metric networks, on their device."""

    pairs: tuple[PerceptualDistance, ...] = ()
    """Networks that measure the perceptual distance of two images."""
    sets: tuple[FeatureExtractor, ...] = ()
    """Networks with the features for Fréchet distance and KID."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Metric → reason why it cannot be computed."""


def open_judges(
    names: Sequence[str],
    runs: Sequence[str],
    device: torch.device,
    weights: Path | None = None,
    download: bool = False,
) -> Judges:
    """Load the metric networks for some tokenizers.

    Args:
        names: keys of `PAIR_JUDGES` and `SET_JUDGES`, paths of convolutional features, or "auto": those available.
        runs: the tokenizers to measure; a network that was used to train one of them is refused. Empty: samples are
            measured, only with networks for sets.
        device: where the networks compute.
        weights: folder to search first for weights.
        download: download weights that are not on this machine.

    Raises:
        FileNotFoundError, ConnectionError: no weights of a network that is given by name.
        ValueError: an unknown name, weights that are not the official ones, a network used in training, or a network
            for pairs to measure samples.
    """
    pairs: list[PerceptualDistance] = []
    sets: list[FeatureExtractor] = []
    left_out: dict[str, str] = {}
    trained_with = {run: training_weights(run) for run in runs}
    auto, titles = (AUTO, TITLES) if runs else (SAMPLE_AUTO, SAMPLE_TITLES)
    for name in dict.fromkeys(chain.from_iterable(auto if each == "auto" else (each,) for each in names)):
        if not runs and name in PAIR_JUDGES:
            raise ValueError(f"judges: {name} compares images with reconstructions and cannot measure samples")
        try:
            judge = _open(name, trained_with, weights, download)
        except (FileNotFoundError, ImportError, ValueError) as error:
            if name in names:  # given by name, not by "auto"
                raise
            left_out[titles.get(name, f"KID on {SET_JUDGES[name].name}" if name in SET_JUDGES else name)] = str(error)
            continue
        judge.to(device)
        if isinstance(judge, PerceptualDistance):
            pairs.append(judge)
        else:
            assert isinstance(judge, FeatureExtractor)
            sets.append(judge)
    return Judges(tuple(pairs), tuple(sets), left_out)


def _open(
    name: str, trained_with: Mapping[str, Mapping[str, float]], weights: Path | None, download: bool
) -> nn.Module:
    if name not in PAIR_JUDGES and name not in SET_JUDGES:
        if not Path(name).is_file():
            known = ", ".join(("auto", *PAIR_JUDGES, *SET_JUDGES))
            raise ValueError(f"judges: got {name!r}, expected {known}, or a path to a file with convolutional features")
        return load_convolutional_features(name)
    network = PAIR_JUDGES[name][1] if name in PAIR_JUDGES else SET_JUDGES[name]
    for run, losses in trained_with.items():
        try:
            refuse_training_network(network.name, losses)
        except ValueError as error:
            raise ValueError(f"judges: {run}: {error}") from error
    if name in PAIR_JUDGES:
        return PAIR_JUDGES[name][0].load(network, weights, download=download)
    return network.load(weights, download=download)


def training_weights(run: str) -> Mapping[str, float]:
    """The table of loss weights in RUN/train.yaml; empty if the training of the tokenizer is not recorded.

    Raises:
        ValueError: a malformed train.yaml.
    """
    recipe = read_settings(saved_folder(run))
    weights = recipe.get("loss_weights", {}) if recipe else {}
    if not isinstance(weights, dict):
        raise ValueError(f"{run}/train.yaml: loss_weights: got {weights!r}, expected a table")
    return weights
