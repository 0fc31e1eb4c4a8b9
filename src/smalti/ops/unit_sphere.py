"""Projection to the unit sphere with a gradient that stays finite.

The gradient of z / ‖z‖ grows as 1 / ‖z‖: a latent of zeros, as a dead network or a padded image gives it, would send
1e12 into the encoder, which is infinite in fp16.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SHORTEST = 1e-5
"""Vectors below this length have no direction to turn: their gradient passes unchanged."""


def unit_sphere(z: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Vectors along the last axis at length 1 (zeros stay zeros), as `torch.nn.functional.normalize` does it.

    The gradient is that of the projection, at most 1e5 times what comes in, and unchanged for shorter vectors.
    """
    unit = F.normalize(z, dim=-1)
    with torch.no_grad():
        short = torch.linalg.vector_norm(z, dim=-1, keepdim=True) < SHORTEST
    return torch.where(short, unit.detach() + (z - z.detach()), unit)
