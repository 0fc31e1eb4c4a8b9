"""Feature networks, which turn images into the vectors that Fréchet distance and KID compare.

`FeatureExtractor` is their interface; the pretrained ones are in `smalti.blocks`. `ConvolutionalFeatures` is the
simplest: convolutions from a safetensors file given by path. With random weights it needs no download, ranks tokenizers
roughly, and makes evaluation testable. Its numbers are not comparable with published ones, and its name shows that.
"""

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from smalti.formats.atomic import replace_file
from smalti.formats.weights import save_tensors

FORMAT, VERSION = "smalti convolutional features", "1"


@runtime_checkable
class FeatureExtractor(Protocol):
    """A network that maps an image to F features.

    Attributes:
        name: part of the name of each metric computed on it.
        weights_sha256: SHA-256 of the weights file, 64 hex digits.
    """

    name: str
    weights_sha256: str

    def features(self, image: Float[Tensor, "b c h w"]) -> Float32[Tensor, "b f"]:
        """Features (B, F) float32 of RGB or grey images (B, C, H, W) in [-1, 1]; grey is three equal channels."""
        ...


class ConvolutionalFeatures(nn.Module):
    """Convolutions of stride 2 with ReLU between them. The features are the mean of each channel over the image.

    Args:
        convolutions: (weight (out, in, k, k), bias (out,)) of each, the first with in = 3; k is odd.
        name: part of the name of each metric computed on it.
        weights_sha256: SHA-256 of the weights file.
    """

    def __init__(self, convolutions: list[tuple[Tensor, Tensor]], name: str, weights_sha256: str) -> None:
        super().__init__()
        self.name = name
        self.weights_sha256 = weights_sha256
        self.weights = nn.ParameterList([weight for weight, _ in convolutions]).requires_grad_(False)
        self.biases = nn.ParameterList([bias for _, bias in convolutions]).requires_grad_(False)

    @torch.no_grad()
    def features(self, image: Float[Tensor, "b c h w"]) -> Float32[Tensor, "b f"]:
        """Features (B, F) of images (B, C, H, W) in [-1, 1], of any size; grey is three equal channels."""
        hidden = image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = F.conv2d(
                hidden if k == 0 else F.relu(hidden), weight, bias, stride=2, padding=weight.shape[2] // 2
            )
        return hidden.mean(dim=(2, 3))


def save_convolutional_features(path: str | Path, convolutions: list[nn.Conv2d], force: bool = False) -> None:
    """Write convolutions to a file for `load_convolutional_features`. Their strides and paddings are ignored.

    Raises:
        FileExistsError: the file exists and `force` is off.
        ValueError: a convolution has no bias.
    """
    tensors = {}
    for k, convolution in enumerate(convolutions):
        if convolution.bias is None:
            raise ValueError(f"convolutions: got number {k} without a bias, expected one")
        tensors[f"{k}.weight"] = convolution.weight.detach().float().contiguous()
        tensors[f"{k}.bias"] = convolution.bias.detach().float().contiguous()
    with replace_file(path, force) as temporary:
        save_tensors(tensors, temporary, {"format": FORMAT, "version": VERSION})


def load_convolutional_features(path: str | Path) -> ConvolutionalFeatures:
    """Load a network that `save_convolutional_features` wrote. It is named after the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not such a file, or the channels of consecutive convolutions do not match.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"features: {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise ValueError(f"features: {path} is not a file of format {FORMAT!r}")
            if file.metadata()["version"] != VERSION:
                raise ValueError(f"features: {path} has version {file.metadata()['version']}, expected {VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise ValueError(f"features: {path} is not a readable safetensors file ({error})") from error
    count = len(tensors) // 2
    names = {f"{k}.{part}" for k in range(count) for part in ("weight", "bias")}
    if names != set(tensors) or not count:
        raise ValueError(f"features: {path} holds {', '.join(sorted(tensors))}; expected 0.weight, 0.bias, 1.weight, …")
    convolutions = [(tensors[f"{k}.weight"], tensors[f"{k}.bias"]) for k in range(count)]
    channels = 3
    for k, (weight, bias) in enumerate(convolutions):
        out = bias.shape[0] if bias.dim() == 1 else 0
        side = weight.shape[-1] if weight.dim() == 4 else 0
        if tuple(weight.shape) != (out, channels, side, side) or side % 2 == 0:
            raise ValueError(f"features: {path}: {k}.weight has shape {tuple(weight.shape)} after {channels} channels")
        channels = out
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ConvolutionalFeatures(convolutions, f"convolutional features {path.name}", digest)
