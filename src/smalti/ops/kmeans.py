"""Lloyd's k-means, to start a codebook where the data is.

Source: Lloyd 1982. It shares its two steps with the quantizers: assign is `nearest_code`, update is `code_sums`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.ops.nearest import nearest_code
from smalti.ops.processes import sample_vectors, sum_over_processes
from smalti.ops.usage import code_sums, count_codes


@torch.no_grad()
def kmeans(
    z_ND: Float[Tensor, "n d"], centres_KD: Float[Tensor, "k d"], iterations: int = 10
) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]]:
    """Move `centres_KD` to the means of the vectors nearest to them, `iterations` times.

    A centre that attracts no vector jumps to a random vector, so that none stays empty while there are vectors to
    share. Randomness comes from torch's global generator. Several processes find the centres of their joined batch
    (`processes.py`).

    Returns:
        The centres (K, D) in fp32 and the number of vectors (K,) that each attracts at the end.
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
