"""Fixed, pretrained networks that compute features of images, for perceptual losses, FID and KID.

They are never trained and thus differ from all other blocks: their weights get no gradient, they are always in eval
mode, they compute in fp32 even under autocast, and their weights are not in any model's checkpoint.
`smalti.formats.find_weights` finds the weights on disk and checks their SHA-256.

A network has two outputs:

- `layers(image)`: the output of each stage, (B, C, H, W), at the image's own size, with gradient; for losses.
- `features(image)`: one vector per image, at the size that the network was trained for; for statistics.

A network must not evaluate a tokenizer that was trained with it, see `smalti.losses.refuse_training_network`.

Legend: B images, C channels, H x W pixels, F features.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from smalti.formats import WeightsFile, find_weights, load_tensors
from smalti.ops.device import without_autocast


class FeatureNetwork(nn.Module, ABC):
    """A chain of stages. The constructor gives it random weights, `load` the published ones."""

    name: ClassVar[str]
    """Exact name of network and weights, shown with every result."""
    weights: ClassVar[WeightsFile]
    """The published file."""
    side: ClassVar[int]
    """Height and width to which `features` resizes images."""
    min_side: ClassVar[int] = 1
    """The shortest side that `layers` takes; smaller images are enlarged to it."""
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    """The network's input is (image - mean) / std, for an RGB image in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(self.build())
        self._mean = nn.Buffer(torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self._std = nn.Buffer(torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        self.weights_sha256 = ""
        """SHA-256 of the weights file; "" for random weights."""
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str | Path | None = None, *, download: bool = False) -> "FeatureNetwork":
        """The network with its published weights, frozen.

        Args:
            path: the file, or a folder that contains it; None: the usual places, see `smalti.formats.find_weights`.
            download: whether to download the file if it is not found.

        Raises:
            FileNotFoundError, ValueError, ConnectionError: see `find_weights`.
            ValueError: reading the file needs a package that is not installed.
        """
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
            network = cls()
        tensors = cls.read(find_weights(cls.weights, path, download=download))
        network.load_state_dict(network.translate(tensors))
        network.weights_sha256 = cls.weights.sha256
        return network

    @classmethod
    def read(cls, path: Path) -> dict[str, Tensor]:
        """The tensors of the published file, by their published names."""
        return load_tensors(path)

    @staticmethod
    @abstractmethod
    def build() -> list[nn.Module]:
        """The stages with random weights; each takes the output of the one before."""

    @abstractmethod
    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict under the names of this class, without unused tensors."""

    def layers(self, image: Float[Tensor, "b c h w"]) -> tuple[Float32[Tensor, "b _c _h _w"], ...]:
        """The output of each stage, fine to coarse, (B, C, H, W) in fp32; differentiable with respect to the image.

        Args:
            image: (B, 3, H, W) or grey (B, 1, H, W) in [-1, 1]; grey becomes three equal channels. An image with a side
                below `min_side` is first enlarged so that its shorter side is `min_side`; the aspect ratio is kept.

        Raises:
            ValueError: neither 1 nor 3 channels.
        """
        return self._see(_enlarged(_color(image), self.min_side))

    @torch.no_grad()
    def features(self, image: Float[Tensor, "b c h w"]) -> Float32[Tensor, "b f"]:
        """One vector per image, (B, F): the last stage averaged over all positions. Without gradient.

        Args:
            image: (B, 3, H, W) or grey (B, 1, H, W) in [-1, 1], of any size; it is resized to `side` x `side`.

        Raises:
            ValueError: neither 1 nor 3 channels.
        """
        return self._see(self._resized(_color(image)))[-1].mean(dim=(2, 3))

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stays in eval mode: with batch statistics, features would depend on the other images of the batch."""
        return super().train(False)

    def _resized(self, image_BCHW: Tensor) -> Tensor:
        size = (self.side, self.side)
        return F.interpolate(image_BCHW, size, mode="bilinear", antialias=True, align_corners=False)

    def _see(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        seen = []
        # Half precision changes features by one percent, more than the difference of two good reconstructions.
        with without_autocast(x_BCHW):
            x_BCHW = (x_BCHW - self._mean) / self._std
            for stage in self.stages:
                x_BCHW = stage(x_BCHW)
                seen.append(x_BCHW)
        return tuple(seen)


def _color(image_BCHW: Tensor) -> Tensor:
    """Three channels in fp32."""
    if image_BCHW.shape[1] not in (1, 3):
        raise ValueError(f"image: got {image_BCHW.shape[1]} channels, expected 1 (grey) or 3 (RGB)")
    return image_BCHW.float().expand(-1, 3, -1, -1)


def _enlarged(image_BCHW: Tensor, min_side: int) -> Tensor:
    """Enlarges the shorter side to `min_side`, aspect ratio kept. Padding instead would dominate the features."""
    height, width = image_BCHW.shape[2:]
    if min(height, width) >= min_side:
        return image_BCHW
    factor = min_side / min(height, width)
    size = (round(height * factor), round(width * factor))
    return F.interpolate(image_BCHW, size, mode="bilinear", align_corners=False)
