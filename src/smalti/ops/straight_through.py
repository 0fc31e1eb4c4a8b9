"""The straight-through estimator: forward, the code; backward, the quantizer counts as the identity.

Source: Bengio et al. 2013 (arXiv 1308.3432), as used by van den Oord et al. 2017 (arXiv 1711.00937), section 3.2.
直通估计：前向返回码字，反向把量化器当作恒等映射。
"""

from jaxtyping import Float
from torch import Tensor


def straight_through(z: Float[Tensor, "*shape"], z_q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return a tensor whose value is exactly `z_q` and whose gradient goes to `z` unchanged.

    The usual form `z + (z_q - z).detach()` rounds twice, so its codes differ from the codebook in the last bits. Here
    `z - z.detach()` is exactly zero, so the codes are unchanged.

    Args:
        z: latent of the encoder, any shape.
        z_q: its quantized version, same shape. No gradient reaches it.
    """
    return z_q.detach() + (z - z.detach())
