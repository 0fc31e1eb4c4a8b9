"""Codes chosen by score: the latent is turned into one logit per code, not compared with the codes.

`GumbelQuantizer` draws codes at random in training and softens the draw for the gradient; `OneHotQuantizer` takes the
largest component of a latent that is made of logits already.

Source: Jang et al. 2016, "Categorical Reparameterization with Gumbel-Softmax" (arXiv 1611.01144); as the bottleneck of
an image tokenizer: the dVAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092) and taming-transformers' GumbelVQ (Esser
et al. 2021, arXiv 2012.09841).

There is no distance and no commitment; a divergence from the uniform prior keeps all codes in use. Compare
`index_backpropagation.py`: same gradient, no randomness, logits from the codes.

Legend: N vectors, K codes, D components.
"""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.checks import above_zero, at_least
from smalti.ops import index_backpropagation, map_tiles, nearest_code
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors
from smalti.quantizers.vector import Codebook


@final
class GumbelQuantizer(PointwiseQuantizer):
    """Codes drawn from softmax(logits): loss = kl_weight · KL(softmax(logits) ‖ uniform).

    >>> vq = GumbelQuantizer(num_embeddings=1024, embedding_dim=64)
    >>> quantized, loss, indices = vq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8)
    """

    soft = True
    temperature: Float[Tensor, ""]
    """Of the softened draw. A training loop may anneal it, `quantizer.temperature.fill_(t)`; it is saved."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temperature: float = 1.0,
    ):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: components of a code D, the channels of the latent.
            straight_through: in training forward the code that was drawn; False forwards the soft mixture, as DALL-E's
                dVAE does. In eval mode it is always the likeliest code, without randomness.
            kl_weight: weight of the divergence.
            temperature: at the start.
        """
        super().__init__()
        at_least(1, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        at_least(0, kl_weight=kl_weight)
        above_zero(temperature=temperature)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.straight_through, self.kl_weight, self.initial_temperature = straight_through, kl_weight, temperature
        self.proj = nn.Linear(embedding_dim, num_embeddings, dtype=torch.float32)
        self.embedding = Codebook(num_embeddings, embedding_dim, dtype=torch.float32)
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The likeliest code: the largest logit w·u + b, found as the largest dot product with (w, b)."""
        with torch.no_grad():
            one_N1 = u_ND.new_ones(u_ND.shape[0], 1)
            weight_KD = torch.cat([self.proj.weight.float(), self.proj.bias.float().unsqueeze(1)], dim=1)
            return nearest_code(torch.cat([u_ND, one_N1], dim=1), weight_KD, "dot")

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Codes of indices, by gathering."""
        return self.embedding(indices_N).float()

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Draw codes (train mode) or take the likeliest (eval mode)."""
        table_KD, log_k = self.embedding.weight.float(), math.log(self.num_embeddings)

        def tile(u_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits_NK = F.linear(u_ND, self.proj.weight.float(), self.proj.bias.float())
            if self.training:
                # Gumbel noise: −log of an exponential variable / Gumbel 噪声
                noisy_NK = logits_NK - torch.empty_like(logits_NK).exponential_().log()
                indices_N = noisy_NK.detach().argmax(dim=1)
            else:
                noisy_NK, indices_N = logits_NK, self.search(u_ND)
            soft_NK = (noisy_NK / self.temperature).softmax(dim=1)
            if self.training and not self.straight_through:
                codes_ND = soft_NK @ table_KD
            else:
                codes_ND = index_backpropagation(soft_NK, indices_N, table_KD)
            log_p_NK = F.log_softmax(logits_NK, dim=1)
            return indices_N, codes_ND, (log_p_NK.exp() * (log_p_NK + log_k)).sum()

        indices, codes, kl = zip(*map_tiles(tile, u_ND, self.num_embeddings), strict=True)
        divergence = torch.stack(kl).sum() / max(1, u_ND.shape[0])
        return QuantizedVectors(torch.cat(indices), torch.cat(codes), entropies={"kl": divergence})

    def weights(self) -> dict[str, float]:
        """The divergence `kl_weight`."""
        return {"kl": self.kl_weight}

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`; the temperature is that of the start."""
        return super().config() | {"temperature": self.initial_temperature}


@final
class OneHotQuantizer(PointwiseQuantizer):
    """The largest component is the code; no loss. The gradient is that of the softmax, without its noise.

    Source: the dVAE of DALL-E, whose decoder begins with a convolution of the one-hot code. `GumbelQuantizer` holds the
    layers on both sides, which make logits and codes; here they belong to encoder and decoder, and nothing is learned.

    >>> one_hot = OneHotQuantizer(num_embeddings=512)
    >>> quantized, loss, indices = one_hot(torch.randn(1, 512, 8, 8))  # (1, 512, 8, 8), 0, (1, 8, 8)
    """

    soft = True

    def __init__(self, num_embeddings: int):
        """
        Args:
            num_embeddings: number of codes K, the channels of the latent.
        """
        super().__init__()
        at_least(1, num_embeddings=num_embeddings)
        self.num_embeddings = self.embedding_dim = num_embeddings
        self.register_buffer("on_device", torch.empty(0), persistent=False)  # says which device

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The first of the largest components."""
        return u_ND.argmax(dim=1)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """A one at the place of the index."""
        return F.one_hot(indices_N, self.num_embeddings).float()

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Forward the one, backward to the softmax."""
        indices_N = self.search(u_ND)
        soft_NK = u_ND.softmax(dim=1)
        return QuantizedVectors(indices_N, self.lookup(indices_N) + (soft_NK - soft_NK.detach()))

    def weights(self) -> dict[str, float]:
        """No terms."""
        return {}
