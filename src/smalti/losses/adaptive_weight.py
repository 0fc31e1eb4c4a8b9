"""How strongly the decoder listens to the discriminator: as strongly as to the reconstruction loss.

Source: Esser et al. 2021, "Taming Transformers" (arXiv 2012.09841), equation 7. The size of an adversarial gradient
says little: it grows with the discriminator's weights, not with how wrong an image is. Dividing by it leaves its
direction.

自适应权重:把对抗损失的梯度缩放到与重建损失的梯度一样长(在解码器最后一层上量),再乘以表中的权重。
"""

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.distributed import process_count, sum_over_processes

DELTA = 1e-6
"""Added to the denominator, as in the paper."""


def adaptive_weight(
    reconstruction_loss: Float[Tensor, ""],
    adversarial_loss: Float[Tensor, ""],
    last_layer: Float[Tensor, "..."],
    largest: float,
    scale: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, ""]:
    """||grad of the reconstruction loss|| / (||grad of the adversarial loss|| + 1e-6), at most `largest`.

    Several processes measure the gradients of the batch that they hold together, in equal parts, and all get the same.

    Args:
        reconstruction_loss: weighted sum of everything that compares reconstruction and image. Terms that do not depend
            on the last layer, such as a quantizer's, may be in it: they change nothing.
        adversarial_loss: the generator's loss, unweighted.
        last_layer: weight of the decoder's last layer, where both gradients are taken.
        largest: what the ratio is cut off at: a discriminator that has nothing to say must not be shouted through.
        scale: what both losses are multiplied with meanwhile, so that small gradients survive in fp16. Where it is so
            large that they overflow, nothing is measured and the weight is 0.

    Returns:
        A scalar without gradient. The graph of both losses is kept for the backward pass to come.
    """
    norms = [
        (sum_over_processes(gradient.float()) / (process_count() * scale)).norm()
        for loss in (reconstruction_loss, adversarial_loss)
        for gradient in torch.autograd.grad(loss * scale, last_layer, retain_graph=True)
    ]
    ratio = norms[0] / (norms[1] + DELTA)
    return torch.where(torch.isfinite(torch.stack(norms)).all(), ratio.clamp(max=largest), 0.0).detach()
