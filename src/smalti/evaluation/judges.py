"""Who judges reconstructions and samples: pretrained networks on this machine, each by its honest name.

A judge of pairs says how different an image and its reconstruction look (LPIPS); a judge of sets compares all
reconstructions with all images (FID, KID). What a name promises is kept: LPIPS, rFID, gFID and the Inception Score are
the official weights, checked by hash, or they are left out; everything else is called after its network.

The network that a tokenizer was trained with finds it better than it is and never judges it.
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
"""Judges of pairs by the name they have on the command line: which distance, on which network."""

SET_JUDGES: dict[str, type[FeatureNetwork]] = {"fid_inception": FIDInception, "efficientnet_lite0": EfficientNetLite0}
"""Judges of sets by the name they have on the command line. Beside them: convolutional features by path."""

AUTO = ("lpips", "fid_inception", "efficientnet_lite0")
"""What "auto" stands for, as far as the weights are here."""

SAMPLE_AUTO = tuple(SET_JUDGES)
"""The same for samples, which are the image of nothing and so can only be judged as a set."""

TITLES = {"lpips": "LPIPS", "hed_vgg16": "VGG16 feature distance", "fid_inception": "rFID"}
"""What is missing where such a judge is left out."""

SAMPLE_TITLES = {"fid_inception": "gFID and Inception Score"}


@dataclass(frozen=True, eq=False)
class Judges:
    """The networks that judge, on their device."""

    pairs: tuple[PerceptualDistance, ...] = ()
    """How different two pictures look."""
    sets: tuple[FeatureExtractor, ...] = ()
    """Whose features Fréchet distance and KID compare."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What cannot be measured → why."""


def open_judges(
    names: Sequence[str],
    runs: Sequence[str],
    device: torch.device,
    weights: Path | None = None,
    download: bool = False,
) -> Judges:
    """Load the judges of some tokenizers.

    Args:
        names: keys of `PAIR_JUDGES` and `SET_JUDGES`, paths of convolutional features, or "auto": what is at hand.
        runs: the tokenizers that are judged; a network that one of them was trained with is not admitted. None: samples
            are judged, by judges of sets alone.
        device: where the networks compute.
        weights: folder to look for weights in first.
        download: fetch weights that are nowhere.

    Raises:
        FileNotFoundError, ConnectionError: a judge that was asked for by name has no weights.
        ValueError: an unknown name, other weights than the official ones, a network of the training, or a judge of
            pairs for samples.
    """
    pairs: list[PerceptualDistance] = []
    sets: list[FeatureExtractor] = []
    left_out: dict[str, str] = {}
    trained_with = {run: training_weights(run) for run in runs}
    auto, titles = (AUTO, TITLES) if runs else (SAMPLE_AUTO, SAMPLE_TITLES)
    for name in dict.fromkeys(chain.from_iterable(auto if each == "auto" else (each,) for each in names)):
        if not runs and name in PAIR_JUDGES:
            raise ValueError(f"judges: {name} compares an image with its reconstruction, and samples are none")
        try:
            judge = _open(name, trained_with, weights, download)
        except (FileNotFoundError, ImportError, ValueError) as error:
            if name in names:  # asked for by its own name
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
            raise ValueError(
                f"judges: got {name!r}, expected {known}, or the path of a file with convolutional features"
            )
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
    """The table of loss weights in RUN/train.yaml; empty where a tokenizer does not say how it was trained.

    Raises:
        ValueError: a train.yaml that is none.
    """
    recipe = read_settings(saved_folder(run))
    weights = recipe.get("loss_weights", {}) if recipe else {}
    if not isinstance(weights, dict):
        raise ValueError(f"{run}/train.yaml: loss_weights is {weights!r}, expected a table")
    return weights
