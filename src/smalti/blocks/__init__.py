"""Encoders, decoders and the blocks they are made of: tensor in, tensor out. They know nothing of codes."""

from smalti.blocks.convolutional import Activation, ConvDecoder, ConvEncoder, Norm, ResidualBlock

__all__ = ["Activation", "ConvDecoder", "ConvEncoder", "Norm", "ResidualBlock"]
