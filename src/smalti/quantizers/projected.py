"""Quantization in few dimensions: a linear layer down, any quantizer, a linear layer up.

Source: "factorized codes" of ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627), section 3.2; LlamaGen (Sun et al. 2024,
arXiv 2406.06525) uses 8 dimensions; the Descript audio codec (Kumar et al. 2023, arXiv 2306.06546) has it in each level
of a residual quantizer. A code is easier to choose in few dimensions, while the decoder still gets many channels.

It is a wrapper, so no quantizer needs a flag for it. The gradient of the inner quantizer reaches the latent
through the two linear layers and trains them, so a residual quantizer around it treats it as soft.
先用线性层降维，再量化，最后用线性层升维；内部量化器的梯度经过两个线性层，因此它属于软量化器。
"""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.checks import at_least
from smalti.formats.arguments import checked
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors


@final
class ProjectedQuantizer(PointwiseQuantizer):
    """Linear `embedding_dim` → `quantizer.embedding_dim`, quantize, linear back.

    >>> vq = ProjectedQuantizer(256, VectorQuantizer(16384, 8, metric="cosine"))
    >>> quantized, loss, indices = vq(torch.randn(1, 256, 8, 8))  # (1, 256, 8, 8), (), (1, 8, 8)
    """

    soft = True

    @checked
    def __init__(self, embedding_dim: int, quantizer: PointwiseQuantizer):
        """
        Args:
            embedding_dim: channels of the latent.
            quantizer: quantizer of the projected vectors; its `embedding_dim` is usually smaller.
        """
        super().__init__()
        at_least(1, embedding_dim=embedding_dim)
        self.embedding_dim, self.num_embeddings = embedding_dim, quantizer.num_embeddings
        self.code_shape = quantizer.code_shape
        self.quantizer = quantizer
        self.project_in = nn.Linear(embedding_dim, quantizer.embedding_dim, dtype=torch.float32)
        self.project_out = nn.Linear(quantizer.embedding_dim, embedding_dim, dtype=torch.float32)

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n *code"]:
        """Project down, then search with the inner quantizer."""
        with torch.no_grad():
            return self.quantizer.search(self._down(u_ND))

    def lookup(self, indices: Int64[Tensor, "n *code"]) -> Float[Tensor, "n d"]:
        """Codes of the inner quantizer, projected up."""
        return _linear(self.project_out, self.quantizer.lookup(indices))

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Project down, quantize with the inner gradient estimator, project up; losses are of projected vectors."""
        low_ND = self._down(u_ND)
        found = self.quantizer.quantize(low_ND)
        codes_ND = _linear(self.project_out, self.quantizer.estimate(low_ND, found.codes))
        return QuantizedVectors(found.indices, codes_ND, found.distances, found.entropies)

    @property
    def initialising(self) -> bool:
        """Whether the inner quantizer is initialising."""
        return self.quantizer.initialising

    @torch.no_grad()
    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Initialise the inner codebook from the projected batch."""
        self.quantizer.initialise(self._down(u_ND))

    @torch.no_grad()
    def learn(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n *code"]) -> None:
        """Update the inner codebook from the projected batch."""
        self.quantizer.learn(self._down(u_ND), indices)

    def weights(self) -> dict[str, float]:
        """See `Quantizer`; the values of the inner quantizer."""
        return self.quantizer.weights()

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """See `PointwiseQuantizer.accepts`; as the inner quantizer."""
        return self.quantizer.accepts(code_shape)

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """The projected codes, (num_embeddings, embedding_dim).

        Where several codes make one vector (inner levels or groups), the inner tables before projection, as single
        codes have no projection of their own.
        """
        return self.quantizer.get_codebook() if self.code_shape else super().get_codebook()

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """See `Quantizer`; the values of the inner quantizer."""
        return self.quantizer.code_counts()

    def _down(self, u_ND: Tensor) -> Tensor:
        return self.quantizer.project(_linear(self.project_in, u_ND))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in fp32, whatever dtype the model was cast to."""
    return F.linear(x, layer.weight.float(), layer.bias.float())
