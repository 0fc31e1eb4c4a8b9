"""Vector quantizer with a codebook by moving average: each code is the average of the vectors that chose it.

Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1:

    N_i <- decay * N_i + (1 - decay) * n_i          n_i: vectors of this batch that chose code i
    m_i <- decay * m_i + (1 - decay) * sum_j z_ij   their sum
    e_i <- m_i / N_i

Difference from `vector.py`: the codebook has no gradient and is not a parameter of the optimizer. Many implementations
add Laplace smoothing of N. It is not in the paper, it pulls codes away from m / N, and it is not needed here: a code
that is not chosen keeps its ratio m / N and does not move.
与 `vector.py` 的区别：码本没有梯度，由选中各码字的向量的滑动平均得到。
"""

from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from smalti.checks import expect
from smalti.distributed import sum_over_processes
from smalti.ops import code_sums
from smalti.quantizers.base import mean_square
from smalti.quantizers.vector import CodebookQuantizer


@final
class EMAVectorQuantizer(CodebookQuantizer):
    """Codebook learned by exponential moving average: loss = beta · ‖z − sg[e]‖².

    >>> vq = EMAVectorQuantizer(num_embeddings=16, embedding_dim=64, decay=0.99)
    >>> quantized, loss, indices = vq(torch.randn(1, 64, 8, 8))  # (1, 64, 8, 8), (), (1, 8, 8)
    """

    embedding_sum: Float[Tensor, "k d"]
    """m of the paper; the codebook is embedding_sum / cluster_size."""

    def prepare(self) -> None:
        """Switch off the gradient of the table, and add the sums of the moving average as a buffer."""
        # There is no codebook term for `swap_beta` to weight
        expect(not self.swap_beta, "swap_beta", self.swap_beta, "False for a codebook learned by moving average")
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("embedding_sum", self.embedding.weight.detach().clone())

    def loss_terms(self, u_ND: Float[Tensor, "n d"], codes_ND: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, ""]]:
        """Only the commitment term: the codebook is updated without gradient. 只有承诺损失。"""
        return {"commitment": mean_square(u_ND, codes_ND.detach())}

    def weights(self) -> dict[str, float]:
        """Commitment beta."""
        return {"commitment": self.beta}

    @property
    def writes_codes(self) -> bool:
        """Always true: every update writes into the table."""
        return True

    def update_averages(
        self,
        u_ND: Float[Tensor, "n d"],
        finite_N: Bool[Tensor, " n"],
        indices_N: Int64[Tensor, " n"],
        counts_K: Float[Tensor, " k"],
        decay: float,
    ) -> None:
        """One step of the three formulas above. 上面三个公式的一步。"""
        super().update_averages(u_ND, finite_N, indices_N, counts_K, decay)
        u_ND = u_ND.masked_fill(~finite_N.unsqueeze(1), 0)
        sums_KD = sum_over_processes(code_sums(u_ND, indices_N, self.num_embeddings))
        self.embedding_sum.lerp_(sums_KD, 1 - decay)
        # A code unused for very long would become 0 / 0: keep its last value / 长期未用的码字保持原值，避免 0 / 0
        alive_K1 = (self.cluster_size > torch.finfo(torch.float32).tiny * 1e6).unsqueeze(1)
        mean_KD = self.embedding_sum / self.cluster_size.unsqueeze(1)
        self.embedding.weight.data.copy_(torch.where(alive_K1, self.normalise(mean_KD), self.embedding.weight))

    def start_averages(self, first: Bool[Tensor, ""], vectors: int) -> None:
        """Start counts and sums together."""
        super().start_averages(first, vectors)
        self._set_sums(first)

    def replace(
        self, chosen_K: Bool[Tensor, " k"], codes_KD: Float[Tensor, "k d"], cluster_size_K: Float[Tensor, " k"]
    ) -> None:
        """Replace codes, counts and sums, so that older averages do not pull a code back."""
        super().replace(chosen_K, codes_KD, cluster_size_K)
        self._set_sums(chosen_K.unsqueeze(1))

    def _set_sums(self, chosen: Tensor) -> None:
        sums_KD = self.embedding.weight.float() * self.cluster_size.unsqueeze(1)
        self.embedding_sum.copy_(torch.where(chosen, sums_KD, self.embedding_sum))
