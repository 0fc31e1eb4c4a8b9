"""Codes chosen by logits: the latent is mapped to one logit per code, not compared with the codes.

`GumbelQuantizer` samples codes in training and uses a softmax for the gradient; `OneHotQuantizer` takes the largest
channel of a latent that already consists of logits.

Source: Jang et al. 2016, "Categorical Reparameterization with Gumbel-Softmax" (arXiv 1611.01144); as the bottleneck of
an image tokenizer: the dVAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092) and taming-transformers' GumbelVQ (Esser
et al. 2021, arXiv 2012.09841).

There are no distances and no commitment loss; the KL divergence from a uniform prior keeps all codes in use. Compare
`index_backpropagation.py`: same gradient, no randomness, logits computed from the codes.
潜变量经线性层得到每个码字的 logit；训练时带 Gumbel 噪声采样，梯度取自 softmax。

Legend: N vectors, K codes, D dimensions.
图例：N 个向量，K 个码字，D 维。
"""

import math
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.checks import above_zero, at_least
from smalti.formats.arguments import checked
from smalti.ops import index_backpropagation, map_tiles, nearest_code
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors
from smalti.quantizers.vector import Codebook


@final
class GumbelQuantizer(PointwiseQuantizer):
    """Codes sampled from softmax(logits): loss = kl_weight · KL(softmax(logits) ‖ uniform).

    >>> vq = GumbelQuantizer(num_embeddings=1024, embedding_dim=64)
    >>> quantized, loss, indices = vq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8)
    """

    soft = True
    temperature: Float[Tensor, ""]
    """Softmax temperature; `set_progress` anneals it. It is saved."""
    older_defaults: ClassVar = {"final_temperature": None}

    @checked
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temperature: float = 1.0,
        final_temperature: float | None = 1 / 16,
    ):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: dimension D of a code, equal to the channels of the latent.
            straight_through: True: training forwards the sampled code. False: training forwards the softmax mixture of
                codes, as DALL-E's dVAE does. Eval mode always forwards the most likely code.
            kl_weight: weight of the KL divergence.
            temperature: initial softmax temperature.
            final_temperature: temperature from the middle of training on; until then it falls along a cosine (the dVAE
                of DALL-E: from 1 to 1/16). None: constant.
        """
        super().__init__()
        at_least(1, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        at_least(0, kl_weight=kl_weight)
        above_zero(temperature=temperature)
        if final_temperature is not None:
            above_zero(final_temperature=final_temperature)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.straight_through, self.kl_weight, self.initial_temperature = straight_through, kl_weight, temperature
        self.proj = nn.Linear(embedding_dim, num_embeddings, dtype=torch.float32)
        self.embedding = Codebook(num_embeddings, embedding_dim, dtype=torch.float32)
        self.final_temperature = final_temperature
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The most likely code: the largest logit w·u + b, found as the largest dot product with (w, b)."""
        with torch.no_grad():
            one_N1 = u_ND.new_ones(u_ND.shape[0], 1)
            weight_KD = torch.cat([self.proj.weight.float(), self.proj.bias.float().unsqueeze(1)], dim=1)
            return nearest_code(torch.cat([u_ND, one_N1], dim=1), weight_KD, "dot")

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Codes of indices, by gather."""
        return self.embedding(indices_N).float()

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Sample codes (train mode) or take the most likely (eval mode). 训练时采样，评估时取最可能的码字。"""
        table_KD, log_k = self.embedding.weight.float(), math.log(self.num_embeddings)

        def tile(u_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits_NK = F.linear(u_ND, self.proj.weight.float(), self.proj.bias.float())
            if self.training:
                # Gumbel noise: −log of an exponential variable / Gumbel 噪声：指数变量的 −log
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

    def set_progress(self, done: float) -> None:
        """Anneal the temperature. 温度退火。"""
        if self.final_temperature is not None:
            high = (1 + math.cos(math.pi * min(1.0, 2 * done))) / 2
            self.temperature.fill_(self.final_temperature + high * (self.initial_temperature - self.final_temperature))

    def weights(self) -> dict[str, float]:
        """KL divergence: `kl_weight`."""
        return {"kl": self.kl_weight}

    def config(self) -> dict[str, Any]:
        """See `Quantizer.config`; the temperature is the initial one."""
        return super().config() | {"temperature": self.initial_temperature}


@final
class OneHotQuantizer(PointwiseQuantizer):
    """The index of the largest channel is the code; no loss. The gradient is that of the softmax, without noise.

    Source: the dVAE of DALL-E; its decoder begins with a convolution of the one-hot code. In `GumbelQuantizer` the
    layers that make logits and codes are part of the quantizer; here they are part of encoder and decoder.

    >>> one_hot = OneHotQuantizer(num_embeddings=512)
    >>> quantized, loss, indices = one_hot(torch.randn(1, 512, 8, 8))  # (1, 512, 8, 8), 0, (1, 8, 8)
    """

    soft = True

    @checked
    def __init__(self, num_embeddings: int):
        """
        Args:
            num_embeddings: number of codes K, the channels of the latent.
        """
        super().__init__()
        at_least(1, num_embeddings=num_embeddings)
        self.num_embeddings = self.embedding_dim = num_embeddings
        self.register_buffer("on_device", torch.empty(0), persistent=False)  # holds the device

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The index of the largest channel; the first one if several are equal."""
        return u_ND.argmax(dim=1)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """One-hot vectors of the indices."""
        return F.one_hot(indices_N, self.num_embeddings).float()

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Forward: one-hot; backward: through the softmax. 前向为独热向量，反向经过 softmax。"""
        indices_N = self.search(u_ND)
        soft_NK = u_ND.softmax(dim=1)
        return QuantizedVectors(indices_N, self.lookup(indices_N) + (soft_NK - soft_NK.detach()))

    def weights(self) -> dict[str, float]:
        """No loss terms."""
        return {}
