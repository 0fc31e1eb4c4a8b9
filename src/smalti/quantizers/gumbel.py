"""Gumbel-softmax quantization: a linear layer scores every code, the best is taken.

Source: Jang et al. 2016 (arXiv 1611.01144), as in the f8 model of Esser et al. 2021 (arXiv 2012.09841). It differs
from a codebook search in that scores come from a layer of their own, not from the codes. Training draws Gumbel noise
with the given temperature; evaluation takes the best score, so that tokens do not depend on chance.

Legend: B images, K codes, D components.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from smalti.quantizers.base import Indices, Quantizer, QuantizerOutput, check_indices, from_rows, positive, to_rows


@final
class GumbelQuantizer(Quantizer):
    """Scores by a linear layer, a hard Gumbel-softmax choice; loss = kl_weight · KL(softmax(scores) ‖ uniform)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, temperature: float = 1.0, kl_weight: float = 5e-4):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: components of a code and channels of the latent D.
            temperature: of the softmax in training.
            kl_weight: weight of the term that keeps the codes evenly used.
        """
        super().__init__()
        positive(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        if temperature <= 0:
            raise ValueError(f"temperature: got {temperature}, expected above 0")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.temperature, self.kl_weight = temperature, kl_weight
        self.scores = nn.Linear(embedding_dim, num_embeddings)
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)

    def forward(
        self, z: Float[Tensor, "b c *spatial"], mask: Bool[Tensor, "b *spatial"] | None = None
    ) -> QuantizerOutput:
        """See `Quantizer.forward`."""
        self._check_latent(z, mask)
        with torch.autocast(z.device.type, enabled=False):
            logits_NK = self.scores(to_rows(z).float())
            if self.training:
                choice_NK = F.gumbel_softmax(logits_NK, tau=self.temperature, hard=True)
                indices_N, codes_ND = choice_NK.argmax(dim=1), choice_NK @ self.embedding.weight
            else:
                indices_N = logits_NK.argmax(dim=1)
                codes_ND = self.embedding(indices_N)
            log_p_NK = F.log_softmax(logits_NK if mask is None else logits_NK[mask.reshape(-1)], dim=1)
            kl_N = (log_p_NK.exp() * (log_p_NK + torch.tensor(float(self.num_embeddings)).log())).sum(dim=1)
        grid = (z.shape[0], *z.shape[2:])
        return QuantizerOutput(
            quantized=from_rows(codes_ND, grid).to(z.dtype),
            indices=indices_N.reshape(grid),
            terms={"kl": kl_N.mean() if kl_N.numel() else kl_N.sum()},
            weights={"kl": self.kl_weight},
        )

    @torch.no_grad()
    def encode(self, z: Float[Tensor, "b c *spatial"]) -> Indices:
        """Indices (B, *spatial) of a latent (B, D, *spatial): the best score, no chance."""
        self._check_latent(z, None)
        return self.scores(to_rows(z).float()).argmax(dim=1).reshape(z.shape[0], *z.shape[2:])

    def decode(self, indices: Indices) -> Float[Tensor, "b c *spatial"]:
        """Codes (B, D, *spatial) in fp32 of indices (B, *spatial)."""
        if not isinstance(indices, Tensor) or indices.dim() == 0:
            raise ValueError(f"indices: got {type(indices).__name__}, expected a tensor of shape (B, *spatial)")
        check_indices(indices, self.num_embeddings)
        return from_rows(self.embedding(indices.reshape(-1)).float(), tuple(indices.shape))

    def get_codebook(self) -> Float[Tensor, "k d"]:
        """The codes (K, D)."""
        return self.embedding.weight

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`."""
        return {
            "type": type(self).__name__,
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "temperature": self.temperature,
            "kl_weight": self.kl_weight,
        }
