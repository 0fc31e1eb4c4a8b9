"""IBQ: the gradient passes through the choice of the code and reaches all codes.

Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv 2412.02692). The
code with the largest dot product is chosen; the gradient is that of the softmax (`ops/index_backpropagation.py`).
Difference from `gumbel.py`: no sampling, and the logits are dot products with the codes. Difference from `vector.py`:
every step moves every code. The cost is N x K x D operations also in the backward pass; memory does not grow with
N x K, because the computation is tiled.
选点积最大的码字，梯度取自 softmax，因此每一步都更新全部码字；计算分块进行，内存不随 N × K 增长。

Legend: N vectors, K codes, D dimensions, T tiles.
图例：N 个向量，K 个码字，D 维，T 块。
"""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.checks import above_zero, at_least
from smalti.distributed import mean_over_processes
from smalti.formats.arguments import checked
from smalti.ops import divergence_from_uniform, index_backpropagation, map_tiles
from smalti.quantizers.base import QuantizedVectors, mean_square
from smalti.quantizers.vector import CodebookQuantizer, vq_terms

JOINS = (torch.cat, torch.cat, torch.stack, torch.stack)
"""How the results of tiles are joined: indices and codes concatenated, sums stacked."""


@final
class IndexBackpropagationQuantizer(CodebookQuantizer):
    """Codebook learned through the soft choice: loss = ‖z_q − z‖² + ‖sg[z] − e‖² + beta · ‖z − sg[e]‖² + entropies.

    >>> vq = IndexBackpropagationQuantizer(num_embeddings=1024, embedding_dim=64)
    >>> quantized, loss, indices = vq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8)
    """

    soft = True

    @checked
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        beta: float = 0.25,
        *,
        entropy_weight: float = 0.05,
        entropy_temperature: float = 0.01,
        decay: float = 0.99,
        swap_beta: bool = False,
    ):
        """
        Args:
            num_embeddings: number of codes K.
            embedding_dim: dimension D of a code, equal to the channels of the latent.
            beta: weight of the commitment term.
            entropy_weight: weight of the two entropy terms.
            entropy_temperature: divides the dot products before the softmax of the entropy terms.
            decay: decay of the moving average of usage, per training batch.
            swap_beta: as in `CodebookQuantizer`; the authors' code uses True.
        """
        at_least(0, entropy_weight=entropy_weight)
        above_zero(entropy_temperature=entropy_temperature)
        super().__init__(num_embeddings, embedding_dim, beta, metric="dot", decay=decay, swap_beta=swap_beta)
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        nn.init.normal_(self.embedding.weight)

    def quantize(self, u_ND: Float[Tensor, "n d"]) -> QuantizedVectors:
        """The code with the largest dot product, with the gradient of the softmax over all codes.

        取点积最大的码字，梯度为对全部码字的 softmax 的梯度。
        """
        table_KD = self.table()

        def tile(u_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            logits_NK = u_ND @ table_KD.T
            indices_N = self.search(u_ND)
            codes_ND = index_backpropagation(logits_NK.softmax(dim=1), indices_N, table_KD)
            log_p_NK = F.log_softmax(logits_NK / self.entropy_temperature, dim=1)
            p_NK = log_p_NK.exp()
            return indices_N, codes_ND, -(p_NK * log_p_NK).sum(), p_NK.sum(dim=0)

        tiles = zip(*map_tiles(tile, u_ND, self.num_embeddings), strict=True)
        indices_N, codes_ND, entropy_T, sums_TK = (join(parts) for join, parts in zip(JOINS, tiles, strict=True))
        count = max(1, u_ND.shape[0])
        mean_K = sums_TK.sum(dim=0) / count
        if self.training:
            mean_K = mean_over_processes(mean_K, u_ND.shape[0])
        distances = self.loss_terms(u_ND, self.lookup(indices_N)) | {"double_quantization": mean_square(codes_ND, u_ND)}
        entropies = {
            "sample_entropy": entropy_T.sum() / count,
            "codebook_divergence": divergence_from_uniform(mean_K) * min(1, u_ND.shape[0]),
        }
        return QuantizedVectors(indices_N, codes_ND, distances, entropies)

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """The two terms of `VectorQuantizer`; `quantize` adds the double quantization loss."""
        return vq_terms(u_ND, codes_ND)

    def weights(self) -> dict[str, float]:
        """Codebook and commitment as in `CodebookQuantizer`; double_quantization 1; both entropies `entropy_weight`."""
        return super().weights() | {
            "double_quantization": 1.0,
            "sample_entropy": self.entropy_weight,
            "codebook_divergence": self.entropy_weight,
        }
