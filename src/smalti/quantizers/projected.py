"""Quantize in few dimensions: a linear layer down, any quantizer, a linear layer up again.

Source: "factorized codes" of ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627), section 3.2; LlamaGen (Sun et al. 2024,
arXiv 2406.06525) uses 8 dimensions; inside each level of a residual quantizer it is the Descript audio codec (Kumar et
al. 2023, arXiv 2306.06546). Choosing a code is easier where few directions matter, while the decoder still gets many
channels.

It is a wrapper so that no quantizer needs a flag for it. The gradient of the quantizer inside reaches the latent
through the two layers, and the layers learn from it: to a residual wrapper outside this is a soft quantizer.
"""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.checks import at_least
from smalti.quantizers.base import PointwiseQuantizer, QuantizedVectors


@final
class ProjectedQuantizer(PointwiseQuantizer):
    """Linear `embedding_dim` → `quantizer.embedding_dim`, quantize, linear back.

    >>> vq = ProjectedQuantizer(256, VectorQuantizer(16384, 8, metric="cosine"))
    >>> quantized, loss, indices = vq(torch.randn(1, 256, 8, 8))  # (1, 256, 8, 8), (), (1, 8, 8)
    """

    soft = True

    def __init__(self, embedding_dim: int, quantizer: PointwiseQuantizer):
        """
        Args:
            embedding_dim: channels of the latent.
            quantizer: what quantizes the projected vectors; its `embedding_dim` is usually smaller.
        """
        super().__init__()
        at_least(1, embedding_dim=embedding_dim)
        self.embedding_dim, self.num_embeddings = embedding_dim, quantizer.num_embeddings
        self.code_shape = quantizer.code_shape
        self.quantizer = quantizer
        self.project_in = nn.Linear(embedding_dim, quantizer.embedding_dim, dtype=torch.float32)
        self.project_out = nn.Linear(quantizer.embedding_dim, embedding_dim, dtype=torch.float32)

    def search(self, u_ND: Float[Tensor, "n d"]) -> Int64[Tensor, "n *code"]:
        """Search among the projected vectors."""
        with torch.no_grad():
            return self.quantizer.search(self._down(u_ND))

    def lookup(self, indices: Int64[Tensor, "n *code"]) -> Float[Tensor, "n d"]:
        """Codes, projected up."""
        return _linear(self.project_out, self.quantizer.lookup(indices))

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """Down, quantize with the inner gradient, up; the loss terms are those of the projected vectors."""
        low_ND = self._down(u_ND)
        found = self.quantizer.quantize(low_ND)
        codes_ND = _linear(self.project_out, self.quantizer.estimate(low_ND, found.codes))
        return QuantizedVectors(found.indices, codes_ND, found.distances, found.entropies)

    @property
    def initialising(self) -> bool:
        """Whether the inner quantizer is."""
        return self.quantizer.initialising

    @torch.no_grad()
    def initialise(self, u_ND: Float[Tensor, "n d"]) -> None:
        """Start the inner codebook from the projected batch."""
        self.quantizer.initialise(self._down(u_ND))

    @torch.no_grad()
    def learn(self, u_ND: Float[Tensor, "n d"], indices: Int64[Tensor, "n *code"]) -> None:
        """Let the inner codebook learn from the projected batch."""
        self.quantizer.learn(self._down(u_ND), indices)

    def weights(self) -> dict[str, float]:
        """Those of the inner quantizer."""
        return self.quantizer.weights()

    def accepts(self, code_shape: tuple[int, ...]) -> bool:
        """What the inner quantizer accepts."""
        return self.quantizer.accepts(code_shape)

    def get_codebook(self) -> Float[Tensor, "*parts k d"]:
        """The codes as they come out, (num_embeddings, embedding_dim).

        Where several codes make one vector (levels or groups inside), none comes out alone: then the inner tables,
        before projection.
        """
        return self.quantizer.get_codebook() if self.code_shape else super().get_codebook()

    def code_counts(self) -> list[Int64[Tensor, " k"]] | None:
        """Those of the inner quantizer."""
        return self.quantizer.code_counts()

    def _down(self, u_ND: Tensor) -> Tensor:
        return self.quantizer.project(_linear(self.project_in, u_ND))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in fp32, whatever dtype the model was cast to."""
    return F.linear(x, layer.weight.float(), layer.bias.float())
