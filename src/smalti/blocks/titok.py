"""Encoder and decoder of TiTok: an image becomes a short sequence of latent tokens, without a grid.

Source: Yu et al. 2024, "An Image is Worth 32 Tokens" (arXiv 2406.07550). The encoder is a vision transformer: its input
are patches and latent tokens, its output only the latent tokens. The decoder's input are the quantized tokens and one
copy of a mask token per patch, its output only the latter. A head turns them into pixels:

    PixelHead   directly (the single-stage models BL and SL)
    CodeHead    through the codebook and decoder of a MaskGIT-VQGAN (the two-stage models S-128, B-64, L-32)

Legend: B images, N latent tokens, D embedding_dim, W width, g patches per side, K codes of the CodeHead, C image
channels, S side of the images.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.blocks.pyramid import PyramidConfig, PyramidDecoder
from smalti.blocks.transformer import TransformerBlock, ViTConfig


def _table(rows: int, width: int) -> nn.Parameter:
    """A learned embedding of `rows` positions or tokens."""
    return nn.Parameter(torch.randn(rows, width) * width**-0.5)


def initialise(module: nn.Module) -> None:
    """The publisher's initial weights: a truncated normal distribution with standard deviation 0.02; biases 0."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TiTokEncoder(nn.Module):
    """Image (B, C, S, S) to latent tokens (B, D, 1, N)."""

    def __init__(
        self,
        config: ViTConfig,
        image_size: int,
        image_channels: int,
        num_latent_tokens: int,
        embedding_dim: int,
        *,
        interleaved: bool,
    ):
        """
        Args:
            config: sizes of the transformer.
            image_size: side S of the images; position embeddings are learned, so no other size works.
            image_channels: channels of the images.
            num_latent_tokens: tokens per image.
            embedding_dim: dimension of a latent token.
            interleaved: whether the last layer reads the (N, W) numbers of an image as (W, N): an error in the code of
                the two-stage models, whose weights were trained with it.
        """
        super().__init__()
        patches = (image_size // config.patch_size) ** 2
        self.interleaved = interleaved
        self.patch_embedding = nn.Conv2d(
            image_channels, config.width, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.class_embedding = _table(1, config.width)
        self.positions = _table(1 + patches, config.width)
        self.latent_tokens = _table(num_latent_tokens, config.width)
        self.latent_positions = _table(num_latent_tokens, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, embedding_dim)
        self.apply(initialise)

    def forward(self, image: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d 1 n"]:
        """(B, C, S, S) to (B, D, 1, N)."""
        batch = image.shape[0]
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)
        tokens = self.latent_tokens + self.latent_positions
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], dim=1) + self.positions
        x = self.norm_in(torch.cat([x, tokens.expand(batch, -1, -1)], dim=1))
        for layer in self.layers:
            x = layer(x)
        x_BNW = self.norm_out(x[:, -tokens.shape[0] :])
        if self.interleaved:
            x_BNW = x_BNW.reshape(batch, x_BNW.shape[2], x_BNW.shape[1]).transpose(1, 2)
        return self.projection(x_BNW).transpose(1, 2).unsqueeze(2)


class TiTokDecoder(nn.Module):
    """Quantized tokens (B, D, 1, N) to images (B, C, S, S), not clamped."""

    def __init__(self, config: ViTConfig, image_size: int, num_latent_tokens: int, embedding_dim: int, head: nn.Module):
        """
        Args:
            config: sizes of the transformer.
            image_size: side S of the images.
            num_latent_tokens: tokens per image.
            embedding_dim: dimension of a token.
            head: a module (B, W, g, g) to (B, C, S, S).
        """
        super().__init__()
        self.grid = image_size // config.patch_size
        self.embedding = nn.Linear(embedding_dim, config.width)
        self.class_embedding = _table(1, config.width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, config.width) * config.width**-0.5)
        self.positions = _table(1 + self.grid**2, config.width)
        self.latent_positions = _table(num_latent_tokens, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.apply(initialise)
        self.head = head

    def forward(self, z_q: Float[Tensor, "b d 1 n"]) -> Float[Tensor, "b c s s"]:
        """(B, D, 1, N) to (B, C, S, S)."""
        batch = z_q.shape[0]
        tokens = self.embedding(z_q.squeeze(2).transpose(1, 2)) + self.latent_positions
        masks = self.mask_token.expand(1, self.grid**2, -1).squeeze(0)
        places = torch.cat([self.class_embedding, masks]) + self.positions
        x = self.norm_in(torch.cat([places.expand(batch, -1, -1), tokens], dim=1))
        for layer in self.layers:
            x = layer(x)
        x = self.norm_out(x[:, 1 : 1 + self.grid**2])
        return self.head(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)))


class PixelHead(nn.Module):
    """The pixels of each patch from its features, then a 3x3 convolution over the whole image."""

    def __init__(self, width: int, patch_size: int, image_channels: int):
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Conv2d(width, patch_size**2 * image_channels, kernel_size=1)
        self.conv_out = nn.Conv2d(image_channels, image_channels, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "b w g g"]) -> Float[Tensor, "b c s s"]:
        """(B, W, g, g) to (B, C, S, S)."""
        batch, _, grid, _ = x.shape
        # Order of the channels: row in the patch, column in the patch, colour
        squares = self.patches(x).reshape(batch, self.patch_size, self.patch_size, -1, grid, grid)
        side = grid * self.patch_size
        return self.conv_out(squares.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, side, side))


class CodeHead(nn.Module):
    """Predicts, for each patch, a distribution over the codes of a VQGAN, and decodes its mean code with this VQGAN."""

    def __init__(self, width: int, num_codes: int, config: PyramidConfig, image_channels: int):
        super().__init__()
        self.logits = nn.Sequential(
            nn.Conv2d(width, 2 * width, kernel_size=1), nn.Tanh(), nn.Conv2d(2 * width, num_codes, kernel_size=1)
        )
        self.codebook = nn.Embedding(num_codes, config.latent_channels)
        self.pixels = PyramidDecoder(config, image_channels, config.latent_channels)

    def forward(self, x: Float[Tensor, "b w g g"]) -> Float[Tensor, "b c s s"]:
        """(B, W, g, g) to (B, C, S, S)."""
        shares_BKgg = self.logits(x).softmax(dim=1)
        return self.pixels(torch.einsum("bkhw,kd->bdhw", shares_BKgg, self.codebook.weight))
