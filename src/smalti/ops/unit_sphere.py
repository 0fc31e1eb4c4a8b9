"""Projection to the unit sphere with a gradient that stays finite.

The gradient of z / ‖z‖ grows as 1 / ‖z‖. A latent of zeros (a dead network, a padded image) would send a gradient of
1e12 into the encoder, which is infinite in fp16.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SHORTEST = 1e-5
"""Vectors below this length have no usable direction: their gradient passes unchanged."""


def unit_sphere(z: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Normalize vectors along the last axis to length 1 (zeros stay zeros), like `torch.nn.functional.normalize`.

    The gradient is that of the projection, at most 1e5 times the incoming one. For vectors that are too short it passes
    unchanged.
    """
    unit = F.normalize(z, dim=-1)
    with torch.no_grad():
        short = torch.linalg.vector_norm(z, dim=-1, keepdim=True) < SHORTEST
    return torch.where(short, unit.detach() + (z - z.detach()), unit)
