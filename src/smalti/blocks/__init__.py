"""Encoders, decoders and their blocks; a discriminator; fixed feature networks. They do not depend on codes."""

from smalti.blocks.alexnet import AlexNet
from smalti.blocks.convolutional import Activation, ConvDecoder, ConvEncoder, Norm, ResidualBlock
from smalti.blocks.discriminator import PatchDiscriminator
from smalti.blocks.efficientnet_lite import EfficientNetLite0
from smalti.blocks.feature_network import FeatureNetwork
from smalti.blocks.fid_inception import FIDInception
from smalti.blocks.vgg import HEDVGG16, VGG16

__all__ = [
    "HEDVGG16",
    "VGG16",
    "Activation",
    "AlexNet",
    "ConvDecoder",
    "ConvEncoder",
    "EfficientNetLite0",
    "FIDInception",
    "FeatureNetwork",
    "Norm",
    "PatchDiscriminator",
    "ResidualBlock",
]
