"""Lookup-free quantization: a code is the signs of a vector, so there is no codebook to search or to store.

Source: Yu et al. 2023, MAGVIT-v2, "Language Model Beats Diffusion" (arXiv 2310.05737), section 3.1.

Legend: B images, D components, one bit each; 2 ** D codes.
"""

from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smalti.ops import straight_through
from smalti.quantizers.base import Indices, Quantizer, QuantizerOutput, check_indices, from_rows, positive, to_rows
from smalti.quantizers.codebook import mean_square


@final
class LookupFreeQuantizer(Quantizer):
    """Each component becomes -1 or 1; component c is bit 2 ** c of the index, 1 where it is above zero."""

    def __init__(self, embedding_dim: int, beta: float = 0.25):
        """
        Args:
            embedding_dim: components, which is bits a token; there are 2 ** embedding_dim codes.
            beta: weight of the commitment term.
        """
        super().__init__()
        positive(embedding_dim=embedding_dim)
        self.embedding_dim, self.num_embeddings, self.beta = embedding_dim, 2**embedding_dim, beta

    def forward(
        self, z: Float[Tensor, "b c *spatial"], mask: Bool[Tensor, "b *spatial"] | None = None
    ) -> QuantizerOutput:
        """See `Quantizer.forward`."""
        self._check_latent(z, mask)
        z_ND = to_rows(z).float()
        codes_ND = torch.where(z_ND > 0, 1.0, -1.0)
        valid = slice(None) if mask is None else mask.reshape(-1)
        grid = (z.shape[0], *z.shape[2:])
        return QuantizerOutput(
            quantized=from_rows(straight_through(z_ND, codes_ND), grid).to(z.dtype),
            indices=self.encode(z),
            terms={"commitment": mean_square(z_ND[valid], codes_ND[valid])},
            weights={"commitment": self.beta},
        )

    @torch.no_grad()
    def encode(self, z: Float[Tensor, "b c *spatial"]) -> Indices:
        """Indices (B, *spatial) of a latent (B, D, *spatial)."""
        self._check_latent(z, None)
        return ((to_rows(z) > 0) * self._bits(z.device)).sum(dim=1).reshape(z.shape[0], *z.shape[2:])

    def decode(self, indices: Indices) -> Float[Tensor, "b c *spatial"]:
        """Signs (B, D, *spatial) in fp32 of indices (B, *spatial)."""
        if not isinstance(indices, Tensor) or indices.dim() == 0:
            raise ValueError(f"indices: got {type(indices).__name__}, expected a tensor of shape (B, *spatial)")
        check_indices(indices, self.num_embeddings)
        bits = (indices.reshape(-1, 1) & self._bits(indices.device)) != 0
        return from_rows(bits.float() * 2 - 1, tuple(indices.shape))

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """All codes (2 ** D, D), written out."""
        return self.decode(torch.arange(self.num_embeddings).unsqueeze(0))[0].T

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {"type": type(self).__name__, "embedding_dim": self.embedding_dim, "beta": self.beta}

    def _bits(self, device: torch.device) -> Tensor:
        return 2 ** torch.arange(self.embedding_dim, device=device)
