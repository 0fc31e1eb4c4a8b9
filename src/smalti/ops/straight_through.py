"""The straight-through estimator: forward the code, backward as if nothing had been rounded.

Source: Bengio et al. 2013 (arXiv 1308.3432), as used by van den Oord et al. 2017 (arXiv 1711.00937), section 3.2.
"""

from jaxtyping import Float
from torch import Tensor


def straight_through(z: Float[Tensor, "*shape"], z_q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return a tensor whose value is exactly `z_q` and whose gradient goes to `z` unchanged.

    The usual form `z + (z_q - z).detach()` rounds twice and returns codes that differ from the codebook in the last
    bits; `z - z.detach()` is exactly zero, so here the codes come out untouched.

    Args:
        z: latent of the encoder, any shape.
        z_q: its quantized version, same shape. No gradient reaches it.
    """
    return z_q.detach() + (z - z.detach())
