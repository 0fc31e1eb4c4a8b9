"""Fixed, pretrained networks that compute features of images, for perceptual losses, FID and KID.

They are never trained, so they differ from all other blocks: no gradient reaches their weights, they are always in eval
mode, they compute in fp32 whatever autocast says, and their weights belong to no model's checkpoint. They are found on
disk by `smalti.formats.find_weights`, which proves their content by SHA-256.

One network answers in two ways:

- `layers(image)`: what each of its stages saw, (B, C, H, W) each, at the image's own size: for losses, with gradient.
- `features(image)`: one vector for each image, at the size that the network was trained for: for statistics.

A network that a tokenizer was trained against must not judge it: see `smalti.losses.refuse_training_network`.

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
    """A chain of stages with published weights. A new one has random weights; `load` gives it the published ones."""

    name: ClassVar[str]
    """The honest name of network and weights, as it stands beside a number."""
    weights: ClassVar[WeightsFile]
    """The published file."""
    side: ClassVar[int]
    """Height and width to which `features` resizes every image."""
    min_side: ClassVar[int] = 1
    """The shortest side that `layers` can see; smaller images are enlarged to it."""
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    """The network sees (image - mean) / std of an RGB image in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(self.build())
        self._mean = nn.Buffer(torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self._std = nn.Buffer(torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        self.weights_sha256 = ""
        """SHA-256 of the file that the weights came from; "" while they are random."""
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str | Path | None = None, *, download: bool = False) -> "FeatureNetwork":
        """The network with its published weights, frozen.

        Args:
            path: the file, or a folder that may hold it; default: the usual places, see `smalti.formats.find_weights`.
            download: fetch the file where it is nowhere.

        Raises:
            FileNotFoundError, ValueError, ConnectionError: as `find_weights` says.
            ValueError: the file needs a package that is not installed; names it.
        """
        with torch.random.fork_rng(devices=[]):  # the initial values are thrown away, so they cost the caller nothing
            network = cls()
        tensors = cls.read(find_weights(cls.weights, path, download=download))
        network.load_state_dict(network.translate(tensors))
        network.weights_sha256 = cls.weights.sha256
        return network

    @classmethod
    def read(cls, path: Path) -> dict[str, Tensor]:
        """The tensors of the published file by their published names."""
        return load_tensors(path)

    @staticmethod
    @abstractmethod
    def build() -> list[nn.Module]:
        """The stages with random weights; each sees the result of the one before."""

    @abstractmethod
    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict under the names of this class, without what nobody needs here."""

    def layers(self, image: Float[Tensor, "b c h w"]) -> tuple[Float32[Tensor, "b _c _h _w"], ...]:
        """What each stage saw, fine to coarse, in fp32; differentiable with respect to the image.

        Args:
            image: (B, 3, H, W) or grey (B, 1, H, W) in [-1, 1]; grey becomes three equal channels. An image with a side
                below `min_side` is first enlarged, both sides by one factor, until that side is as long.

        Raises:
            ValueError: neither 1 nor 3 channels.
        """
        return self._see(_enlarged(_color(image), self.min_side))

    @torch.no_grad()
    def features(self, image: Float[Tensor, "b c h w"]) -> Float32[Tensor, "b f"]:
        """One vector for each image: the last stage, averaged over its positions. Without gradient.

        Args:
            image: (B, 3, H, W) or grey (B, 1, H, W) in [-1, 1], of any size; it is resized to `side` x `side`.

        Raises:
            ValueError: neither 1 nor 3 channels.
        """
        return self._see(self._resized(_color(image)))[-1].mean(dim=(2, 3))

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in eval mode: with batch statistics, features would depend on the other images of the batch."""
        return super().train(False)

    def _resized(self, image_BCHW: Tensor) -> Tensor:
        size = (self.side, self.side)
        return F.interpolate(image_BCHW, size, mode="bilinear", antialias=True, align_corners=False)

    def _see(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        seen = []
        # Half precision moves features by a percent, more than two good reconstructions differ.

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
    """Both sides by one factor, so that the shorter is at least `min_side`; padding would judge mostly padding."""
    height, width = image_BCHW.shape[2:]
    if min(height, width) >= min_side:
        return image_BCHW
    factor = min_side / min(height, width)
    size = (round(height * factor), round(width * factor))
    return F.interpolate(image_BCHW, size, mode="bilinear", align_corners=False)
