"""SimVQ: a frozen random codebook behind one learned linear layer.

Source: Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer" (arXiv
2411.02038). The codes are e = W c + b with c fixed at random, W and b learned.

In `vector.py` a step moves only the chosen codes. Here every step transforms all codes, so dead codes need no revival.
码字 e = W c + b，c 随机且固定，只学习 W 与 b；每一步都改变全部码字，因此不必复活死码。
"""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smalti.formats.arguments import checked
from smalti.ops.nearest import Metric
from smalti.quantizers.vector import CodebookQuantizer, Gradient, vq_terms


@final
class CodeTransform(nn.Linear):
    """The linear layer that computes all codes. It has no weight decay, which would pull every code to 0."""


@final
class SimVQ(CodebookQuantizer):
    """Codebook W · C + b with C frozen: loss = ‖sg[z] − e‖² + beta · ‖z − sg[e]‖².

    >>> vq = SimVQ(num_embeddings=1024, embedding_dim=64)
    >>> quantized, loss, indices = vq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8)
    """

    @checked
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        metric: Metric = "euclidean",
        gradient: Gradient = "straight_through",
        decay: float = 0.99,
        swap_beta: bool = False,
    ):
        """Arguments as in `CodebookQuantizer`."""
        super().__init__(
            num_embeddings, embedding_dim, beta, metric=metric, gradient=gradient, decay=decay, swap_beta=swap_beta
        )
        nn.init.normal_(self.embedding.weight, std=embedding_dim**-0.5)
        self.embedding.weight.requires_grad_(False)
        self.embedding_proj = CodeTransform(embedding_dim, embedding_dim, dtype=torch.float32)

    def table(self) -> Float[Tensor, "k d"]:
        """All codes (K, D): the frozen vectors after the linear layer."""
        return self._transform(self.embedding.weight)

    def lookup(self, indices_N: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Codes of indices: gather the frozen vectors, then transform only these."""
        return self.normalise(self._transform(self.embedding(indices_N)))

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Codebook and commitment terms; the codebook term trains the linear layer."""
        return vq_terms(u_ND, codes_ND)

    def _transform(self, latent_basis_KD: Tensor) -> Tensor:
        layer = self.embedding_proj
        return F.linear(latent_basis_KD.float(), layer.weight.float(), layer.bias.float())
