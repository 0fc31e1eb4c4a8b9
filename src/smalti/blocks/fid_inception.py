"""The Inception network of FID: TensorFlow's Inception-v3 of 2015.

Source: Szegedy et al. 2016, "Rethinking the Inception Architecture" (arXiv 1512.00567), as published in the TensorFlow
graph `inception-2015-12-05` that Heusel et al. 2017 (arXiv 1706.08500) compute FID with, converted by pytorch-fid.
torchvision's Inception-v3 is another network, and a distance computed with it is no FID. The differences:

- average pooling inside the blocks does not count the padding;
- the last block has max pooling, all others average pooling;
- it has 1008 classes, and the Inception Score is computed from logits without bias;
- images are resized as in TensorFlow 1: pixel i of the result is read at i * (old size / new size), without a shift by
  half a pixel and without antialiasing; then values become (value - 128) / 128.

The returned layers have 64, 192, 768 and 2048 channels; the mean of the last is FID's "pool3" vector.
"""

from collections import OrderedDict

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from smalti.blocks.feature_network import FeatureNetwork
from smalti.formats import WeightsFile

OWN_PARTS = ("stages", "branches", "split")
"""Parts of smalti's names, besides numbers, that published names do not have."""


class FIDInception(FeatureNetwork):
    """FID's Inception with the weights converted by pytorch-fid (Apache-2.0); `features` are (B, 2048)."""

    name = "FID Inception"
    weights = WeightsFile(
        names=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    )
    side = 299
    min_side = 75  # smaller images leave nothing for the last halving
    mean = (128 / 127.5 - 1,) * 3
    std = (128 / 127.5,) * 3

    @staticmethod
    def build() -> list[nn.Module]:
        return [
            _chain(
                Conv2d_1a_3x3=_Conv(3, 32, 3, stride=2),
                Conv2d_2a_3x3=_Conv(32, 32, 3, same=False),
                Conv2d_2b_3x3=_Conv(32, 64, 3),
                pool=nn.MaxPool2d(3, stride=2),
            ),
            _chain(
                Conv2d_3b_1x1=_Conv(64, 80, 1),
                Conv2d_4a_3x3=_Conv(80, 192, 3, same=False),
                pool=nn.MaxPool2d(3, stride=2),
            ),
            _chain(
                Mixed_5b=_block_a(192, pooled=32),
                Mixed_5c=_block_a(256, pooled=64),
                Mixed_5d=_block_a(288, pooled=64),
                Mixed_6a=_block_b(288),
                Mixed_6b=_block_c(128),
                Mixed_6c=_block_c(160),
                Mixed_6d=_block_c(160),
                Mixed_6e=_block_c(192),
            ),
            _chain(
                Mixed_7a=_block_d(768),
                Mixed_7b=_block_e(1280, _average()),
                Mixed_7c=_block_e(2048, nn.MaxPool2d(3, stride=1, padding=1)),
            ),
        ]

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2048, 1008, bias=False).requires_grad_(False)

    def logits(self, features_BF: Float32[Tensor, "b f"]) -> Float32[Tensor, "b k"]:
        """Logits (B, 1008) of features (B, 2048), without bias, as for published Inception Scores."""
        return self.fc(features_BF)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensors[_published(key)] for key in self.state_dict()}

    def _resized(self, image_BCHW: Tensor) -> Tensor:
        return _resize_as_tensorflow_1(image_BCHW, self.side)


def _published(key: str) -> str:
    """The published name: smalti's name without the parts for the structure of the blocks."""
    return ".".join(part for part in key.split(".") if not part.isdigit() and part not in OWN_PARTS)


def _resize_as_tensorflow_1(image_BCHW: Tensor, side: int) -> Tensor:
    """Bilinear interpolation, pixel i read at i * old / new; first columns, then rows."""
    for dim in (3, 2):
        length = image_BCHW.shape[dim]
        position = torch.arange(side, device=image_BCHW.device, dtype=torch.float32) * (length / side)
        low = position.long()
        high = (low + 1).clamp(max=length - 1)
        share = (position - low).view(-1, *[1] * (3 - dim))
        start, end = image_BCHW.index_select(dim, low), image_BCHW.index_select(dim, high)
        image_BCHW = start + (end - start) * share
    return image_BCHW


# ---- blocks: parallel branches, joined along the channels; names as in the published weights -------------


def _chain(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU; padded to keep the size if `same` is true and the stride is 1, else not padded."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True
    ):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (kernel[0] // 2, kernel[1] // 2) if same and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.relu_(self.bn(self.conv(x_BCHW)))


class _Parallel(nn.Module):
    """Several branches with the same input, joined along the channels."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([branch(x_BCHW) for branch in self.branches], dim=1)


def _pooled(in_channels: int, out_channels: int, pool: nn.Module) -> nn.Sequential:
    return _chain(pool=pool, branch_pool=_Conv(in_channels, out_channels, 1))


def _average() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _block_a(width: int, pooled: int) -> _Parallel:
    """35 x 35."""
    return _Parallel(
        _chain(branch1x1=_Conv(width, 64, 1)),
        _chain(branch5x5_1=_Conv(width, 48, 1), branch5x5_2=_Conv(48, 64, 5)),
        _chain(branch3x3dbl_1=_Conv(width, 64, 1), branch3x3dbl_2=_Conv(64, 96, 3), branch3x3dbl_3=_Conv(96, 96, 3)),
        _pooled(width, pooled, _average()),
    )


def _block_b(width: int) -> _Parallel:
    """35 x 35 to 17 x 17."""
    return _Parallel(
        _chain(branch3x3=_Conv(width, 384, 3, stride=2)),
        _chain(
            branch3x3dbl_1=_Conv(width, 64, 1),
            branch3x3dbl_2=_Conv(64, 96, 3),
            branch3x3dbl_3=_Conv(96, 96, 3, stride=2),
        ),
        nn.MaxPool2d(3, stride=2),
    )


def _block_c(narrow: int, width: int = 768) -> _Parallel:
    """17 x 17; kernels 1 x 7 and 7 x 1."""
    row, column = (1, 7), (7, 1)
    return _Parallel(
        _chain(branch1x1=_Conv(width, 192, 1)),
        _chain(
            branch7x7_1=_Conv(width, narrow, 1),
            branch7x7_2=_Conv(narrow, narrow, row),
            branch7x7_3=_Conv(narrow, 192, column),
        ),
        _chain(
            branch7x7dbl_1=_Conv(width, narrow, 1),
            branch7x7dbl_2=_Conv(narrow, narrow, column),
            branch7x7dbl_3=_Conv(narrow, narrow, row),
            branch7x7dbl_4=_Conv(narrow, narrow, column),
            branch7x7dbl_5=_Conv(narrow, 192, row),
        ),
        _pooled(width, 192, _average()),
    )


def _block_d(width: int) -> _Parallel:
    """17 x 17 to 8 x 8."""
    return _Parallel(
        _chain(branch3x3_1=_Conv(width, 192, 1), branch3x3_2=_Conv(192, 320, 3, stride=2)),
        _chain(
            branch7x7x3_1=_Conv(width, 192, 1),
            branch7x7x3_2=_Conv(192, 192, (1, 7)),
            branch7x7x3_3=_Conv(192, 192, (7, 1)),
            branch7x7x3_4=_Conv(192, 192, 3, stride=2),
        ),
        nn.MaxPool2d(3, stride=2),
    )


def _block_e(width: int, pool: nn.Module) -> _Parallel:
    """8 x 8; two branches split again."""
    row, column = (1, 3), (3, 1)
    return _Parallel(
        _chain(branch1x1=_Conv(width, 320, 1)),
        _chain(
            branch3x3_1=_Conv(width, 384, 1),
            split=_Parallel(_chain(branch3x3_2a=_Conv(384, 384, row)), _chain(branch3x3_2b=_Conv(384, 384, column))),
        ),
        _chain(
            branch3x3dbl_1=_Conv(width, 448, 1),
            branch3x3dbl_2=_Conv(448, 384, 3),
            split=_Parallel(
                _chain(branch3x3dbl_3a=_Conv(384, 384, row)), _chain(branch3x3dbl_3b=_Conv(384, 384, column))
            ),
        ),
        _pooled(width, 192, pool),
    )
