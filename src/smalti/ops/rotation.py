"""The rotation trick: forward the code, backward through the rotation that turns the vector into its code.

Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick" (arXiv 2410.06424), section 4.

`straight_through.py` moves the gradient from the code to the vector unchanged, whatever lies between them. Here
z_q = lambda R z, with R the rotation from the direction of z to that of z_q and lambda the ratio of their lengths, both
held constant; the gradient of z is lambda R^T g. So the angle between gradient and code is the angle between gradient
and vector: vectors in one cell are pushed apart or together according to where they lie in it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rotation_trick(z: Float[Tensor, "*rows d"], z_q: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Return a tensor whose value is exactly `z_q` and whose gradient reaches `z` as lambda R^T g.

    Args:
        z: vectors along the last axis.
        z_q: their codes, same shape. No gradient reaches them.
    """
    with torch.no_grad():
        e, q = F.normalize(z, dim=-1), F.normalize(z_q, dim=-1)
        r = F.normalize(e + q, dim=-1)
        length = z.norm(dim=-1, keepdim=True)
        # A vector of length 0 has no direction to turn: scale 1 keeps its gradient finite
        scale = torch.where(length > 1e-6, z_q.norm(dim=-1, keepdim=True) / length.clamp(min=1e-6), 1.0)
    # R = I - 2 r r^T + 2 q e^T (two reflections), without writing a D x D matrix
    rotated = z - 2 * (z * r).sum(-1, keepdim=True) * r + 2 * (z * e).sum(-1, keepdim=True) * q
    rotated = scale * rotated
    return z_q.detach() + (rotated - rotated.detach())
