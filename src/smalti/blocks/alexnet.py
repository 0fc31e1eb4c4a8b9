"""AlexNet's five convolutions as a fixed feature network: the trunk of LPIPS, lighter and coarser than VGG16.

Source: Krizhevsky 2014, "One weird trick" (arXiv 1404.5997), in torchvision's form. The returned layers are the five
ReLUs, as in LPIPS.
"""

from torch import Tensor, nn

from smalti.blocks.feature_network import FeatureNetwork
from smalti.blocks.vgg import VGG16
from smalti.formats import WeightsFile

CHANNELS = (64, 192, 384, 256, 256)
TORCHVISION_NAMES = {
    "features.0": "0.0",
    "features.3": "1.1",
    "features.6": "2.1",
    "features.8": "3.0",
    "features.10": "4.0",
}
"""Torchvision's names of the convolutions, and their places in `stages`."""


class AlexNet(FeatureNetwork):
    """AlexNet with torchvision's ImageNet weights (BSD-3-Clause)."""

    name = "AlexNet"
    weights = WeightsFile(
        names=("alexnet-owt-7be5be79.pth",),
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    )
    side = 224
    min_side = 31  # the input of the last pooling is then 3 x 3
    mean, std = VGG16.mean, VGG16.std

    @staticmethod
    def build() -> list[nn.Module]:
        return [
            nn.Sequential(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, stride=2), nn.Conv2d(64, 192, kernel_size=5, padding=2), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, stride=2), nn.Conv2d(192, 384, kernel_size=3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(256, 256, kernel_size=3, padding=1), nn.ReLU()),
        ]

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"stages.{TORCHVISION_NAMES[layer]}.{kind}": tensor
            for (layer, _, kind), tensor in ((key.rpartition("."), value) for key, value in tensors.items())
            if not layer.startswith("classifier")
        }
