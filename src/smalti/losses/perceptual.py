"""Perceptual distances of two images in the features of a pretrained network: LPIPS, and a plain feature distance.

A pixel loss cannot tell a blurred leaf from a shifted one; a network trained for recognition can. Both distances
compare the layers of a fixed network (`smalti.blocks.FeatureNetwork`) for two images. At each position, the channels
are scaled to unit length. The squared differences are weighted over channels, averaged over positions, and combined
over layers.
The distances differ in the weights:

- `LPIPS` (Zhang et al. 2018, arXiv 1801.03924, equation 1): weights fitted to human judgements, layers summed. The
  weights are specific to torchvision's VGG16 or AlexNet; LPIPS exists only for these.
- `FeatureDistance`: equal weights for all channels and layers. It works with any network and is named after it.

A tokenizer trained on a network scores too well on that network. Therefore the same network must not evaluate it:
`refuse_training_network` (in `table.py`) ensures this.

感知距离：在预训练网络的特征中比较两幅图像。每个位置上把各通道归一化为单位长度，差的平方按通道加权、对位置取均值，再
把各层合并。`LPIPS` 的权重由人的判断拟合而来，只适用于 torchvision 的 VGG16 或 AlexNet；`FeatureDistance` 对所有通道
和层等权，适用于任何网络。分词器训练时使用过的网络会给出过好的分数，因此不能用来评估它：`refuse_training_network` 保
证这一点。

Legend: B images, C channels, H x W pixels or positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from smalti.blocks import VGG16, AlexNet, FeatureNetwork
from smalti.formats import WeightsFile, find_weights, load_tensors
from smalti.ops.device import without_autocast

EPS = 1e-10
"""Minimum length in the normalisation of features, as in LPIPS."""
HEADS = {
    VGG16: WeightsFile(
        names=("vgg.pth",),
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
        wheel="torchmetrics/functional/image/lpips_models/vgg.pth",
    ),
    AlexNet: WeightsFile(
        names=("alex.pth",),
        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
        wheel="torchmetrics/functional/image/lpips_models/alex.pth",
    ),
}
"""LPIPS's weights, version 0.1 (BSD-2-Clause), for each network that they were fitted to."""


class PerceptualDistance(nn.Module, ABC):
    """Distance of two images in the layers of a fixed network. It has no trainable and no saved parameters."""

    name: str
    """The honest name, as it stands beside a number."""
    weights_sha256: str
    """SHA-256 of the files that the weights came from, joined by "+"; "" while they are random."""

    def __init__(self, network: FeatureNetwork):
        super().__init__()
        self.network = network

    def forward(self, reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]) -> Float32[Tensor, ""]:
        """Mean distance over the batch, a scalar for training; see `distances`."""
        return self.distances(reconstruction, image).mean()

    def distances(
        self, reconstruction: Float[Tensor, "b c h w"], image: Float[Tensor, "b c h w"]
    ) -> Float32[Tensor, " b"]:
        """Distance of each pair (B,), 0 for equal images, in fp32 also under autocast.

        Args:
            reconstruction: (B, 3, H, W) or grey (B, 1, H, W) in [-1, 1]; grey becomes three equal channels. Images too
                small for the network are enlarged, see `FeatureNetwork.layers`. Receives the gradient.
            image: the original, same shape. Receives no gradient.

        Raises:
            ValueError: neither 1 nor 3 channels, or different shapes.
        """
        if reconstruction.shape != image.shape:
            raise ValueError(
                f"reconstruction: got {tuple(reconstruction.shape)}, expected the image's {tuple(image.shape)}"
            )
        with torch.no_grad():
            seen = self.network.layers(image)
        with without_autocast(image):
            parts = [
                self.weigh(index, _difference(x_BCHW, y_BCHW))
                for index, (x_BCHW, y_BCHW) in enumerate(zip(self.network.layers(reconstruction), seen, strict=True))
            ]
        return torch.stack(parts).sum(dim=0)

    @abstractmethod
    def weigh(self, layer: int, difference_BC: Float32[Tensor, "b c"]) -> Float32[Tensor, " b"]:
        """Contribution of one layer, from the squared differences (B, C) averaged over its positions."""


class FeatureDistance(PerceptualDistance):
    """Equal weights: the squared distance of unit vectors, averaged over the layers, 0 to 4."""

    def __init__(self, network: FeatureNetwork):
        super().__init__(network)
        self.name = f"{network.name} feature distance"
        self.weights_sha256 = network.weights_sha256

    @classmethod
    def load(
        cls, kind: type[FeatureNetwork], path: str | Path | None = None, *, download: bool = False
    ) -> "FeatureDistance":
        """The distance on a network with its published weights. Arguments and errors as for the network's `load`."""
        return cls(kind.load(path, download=download))

    def weigh(self, layer: int, difference_BC: Tensor) -> Tensor:
        return difference_BC.sum(dim=1) / len(self.network.stages)


class LPIPS(PerceptualDistance):
    """Learned perceptual image patch similarity, version 0.1. Lower is more alike."""

    def __init__(self, network: FeatureNetwork, heads: Sequence[Float[Tensor, " c"]]):
        """
        Args:
            network: VGG16 or AlexNet.
            heads: channel weights for each of its layers.

        Raises:
            ValueError: a network without published heads.
        """
        if type(network) not in HEADS:
            raise ValueError(f"network: got {network.name}, expected {' or '.join(kind.name for kind in HEADS)}")
        super().__init__(network)
        self.name = f"LPIPS ({network.name})"
        self.weights_sha256 = ""
        self.heads = nn.ParameterList(nn.Parameter(head, requires_grad=False) for head in heads)

    @classmethod
    def load(cls, kind: type[FeatureNetwork], path: str | Path | None = None, *, download: bool = False) -> "LPIPS":
        """LPIPS with the official weights of network and heads.

        Args:
            kind: `VGG16`, as is usual in training, or `AlexNet`, as is usual in evaluation.
            path: a folder to search first for both files. The heads also come with torchmetrics.
            download: download missing files.

        Raises:
            ValueError: a network without published heads.
            FileNotFoundError, ConnectionError: as for `find_weights`.
        """
        if kind not in HEADS:
            raise ValueError(f"network: got {kind.name}, expected {' or '.join(own.name for own in HEADS)}")
        tensors = load_tensors(find_weights(HEADS[kind], path, download=download))
        network = kind.load(path, download=download)
        lpips = cls(network, [tensors[f"lin{i}.model.1.weight"].flatten() for i in range(len(network.stages))])
        lpips.weights_sha256 = f"{network.weights_sha256}+{HEADS[kind].sha256}"
        return lpips

    def weigh(self, layer: int, difference_BC: Tensor) -> Tensor:
        return difference_BC @ self.heads[layer]


def _difference(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Squared difference (B, C) of two normalised features, averaged over the positions."""
    # Not x / (norm + eps), as in the official code: its gradient is NaN where all channels are 0.
    # 不用官方代码的 x / (norm + eps)：所有通道为 0 处其梯度为 NaN。
    return (F.normalize(x_BCHW, dim=1, eps=EPS) - F.normalize(y_BCHW, dim=1, eps=EPS)).square().mean(dim=(2, 3))
