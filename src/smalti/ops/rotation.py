"""The rotation trick: the forward pass returns the code, the backward pass rotates the gradient to the vector.

Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick" (arXiv 2410.06424), section 4.

`straight_through.py` copies the gradient from the code to the vector. Here z_q = lambda R z, where R rotates the
direction of z to that of z_q and lambda is the ratio of their lengths; both are held constant. The gradient of z is
lambda R^T g. The angle between gradient and code is preserved between gradient and vector. Therefore vectors of one
cell are pushed apart or together depending on their position in the cell.
旋转技巧：前向返回码字，反向把梯度旋转到向量上。直通估计原样复制梯度；这里 z_q = lambda R z，其中 R 把 z 的方向旋转到
z_q 的方向，lambda 是两者长度之比，均视为常数，于是 z 的梯度为 lambda R^T g。梯度与码字的夹角等于梯度与向量的夹角，
因此同一单元内的向量会按其在单元中的位置被推开或拉近。
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
        # A vector of length 0 has no direction: scale 1 keeps its gradient finite
        scale = torch.where(length > 1e-6, z_q.norm(dim=-1, keepdim=True) / length.clamp(min=1e-6), 1.0)
    # R = I - 2 r r^T + 2 q e^T (two reflections), without forming a D x D matrix
    rotated = z - 2 * (z * r).sum(-1, keepdim=True) * r + 2 * (z * e).sum(-1, keepdim=True) * q
    rotated = scale * rotated
    return z_q.detach() + (rotated - rotated.detach())
