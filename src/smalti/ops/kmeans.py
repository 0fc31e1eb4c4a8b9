"""Lloyd's k-means, for data-dependent codebook initialization.

Source: Lloyd 1982. Both steps are shared with the quantizers: assignment is `nearest_code`, the update is `code_sums`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.distributed import joined_size, sample_vectors, sum_over_processes
from smalti.ops.nearest import nearest_code
from smalti.ops.usage import code_sums, count_codes


@torch.no_grad()
def kmeans(
    z_ND: Float[Tensor, "n d"], centres_KD: Float[Tensor, "k d"], iterations: int = 10
) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]]:
    """Move `centres_KD` to the means of the vectors nearest to them, `iterations` times.

    A centre without vectors is replaced by a random vector, so none stays empty while there are enough vectors.
    Random numbers come from torch's global generator. Several processes find the centres of their joined batch
    (`processes.py`).

    Returns:
        The centres (K, D) in fp32 and the number of vectors (K,) finally assigned to each.
    """
    z_ND, centres_KD = z_ND.float(), centres_KD.float()
    num_centres = centres_KD.shape[0]
    for _ in range(iterations):
        indices_N = nearest_code(z_ND, centres_KD)
        counts_K = sum_over_processes(count_codes(indices_N, num_centres))
        sums_KD = sum_over_processes(code_sums(z_ND, indices_N, num_centres))
        means_KD = sums_KD / counts_K.clamp(min=1).unsqueeze(1)
        empty_K = counts_K == 0
        means_KD[empty_K] = sample_vectors(z_ND, int(empty_K.sum()))
        centres_KD = means_KD
    return centres_KD, sum_over_processes(count_codes(nearest_code(z_ND, centres_KD), num_centres))


@torch.no_grad()
def kmeans_start(
    z_ND: Float[Tensor, "n d"], codes_KD: Float[Tensor, "k d"], batch: Int64[Tensor, ""], batches: int, iterations: int
) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]]:
    """`kmeans` on the first training batches of a codebook. Afterwards: the codes unchanged, with counts of 0.

    Inside `torch.compile` this is one operator, because it depends on tensor values.

    Args:
        z_ND: the vectors of the batch. Those that are not finite are ignored.
        codes_KD: the current codes. In the first batch they are ignored, and random vectors of the batch are used.
        batch: number of this batch, from 0.
        batches: number of batches used for initialization.
        iterations: k-means iterations per batch.

    Returns:
        The centres (K, D) in fp32 and the number of vectors (K,) assigned to each.
    """
    start = _operator if torch.compiler.is_compiling() else _start
    return start(z_ND, codes_KD, batch, batches, iterations)


def _start(z_ND: Tensor, codes_KD: Tensor, batch: Tensor, batches: int, iterations: int) -> tuple[Tensor, Tensor]:
    z_ND = z_ND[z_ND.isfinite().all(dim=1)]
    number = int(batch)
    if number >= batches or joined_size(z_ND) == 0:
        return codes_KD.clone(), torch.zeros_like(codes_KD[:, 0], dtype=torch.int64)
    return kmeans(z_ND, codes_KD if number else sample_vectors(z_ND, codes_KD.shape[0]), iterations)


@torch.library.custom_op("smalti::kmeans_start", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _operator(z_ND: Tensor, codes_KD: Tensor, batch: Tensor, batches: int, iterations: int) -> tuple[Tensor, Tensor]:
    return _start(z_ND, codes_KD, batch, batches, iterations)


@_operator.register_fake
def _shapes_of_the_result(z_ND: Tensor, codes_KD: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(codes_KD, dtype=torch.float32), torch.empty_like(codes_KD[:, 0], dtype=torch.int64)
