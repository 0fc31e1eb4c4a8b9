"""Adaptive weight: scales the adversarial gradient to the length of the reconstruction gradient.

Source: Esser et al. 2021, "Taming Transformers" (arXiv 2012.09841), equation 7. Both gradients are measured at the
decoder's last layer. The length of an adversarial gradient carries little information: it grows with the
discriminator's weights, not with the error of the image. Dividing by the length keeps only the direction. The result is
multiplied by the weight from the loss table.

自适应权重：把对抗损失的梯度缩放到与重建损失的梯度等长。两个梯度都在解码器最后一层上测量。对抗梯度的长度随判别器的权
重增长，与图像的误差无关，因此只保留其方向。结果再乘以损失表中的权重。
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

    Several processes measure the gradients over their joined batch, with equal shares, and get the same result.

    Args:
        reconstruction_loss: weighted sum of all terms that compare reconstruction and image. It may include terms that
            do not depend on the last layer, such as a quantizer's; they have no effect.
        adversarial_loss: the generator's loss, unweighted.
        last_layer: weight of the decoder's last layer, where both gradients are measured.
        largest: upper limit of the ratio. It prevents an uninformative discriminator from being amplified.
        scale: factor on both losses during the measurement, so that small gradients do not vanish in fp16. If the
            gradients overflow, the weight is 0.

    Returns:
        A scalar without gradient. The graph of both losses is kept for the later backward pass.
    """
    norms = [
        (sum_over_processes(gradient.float()) / (process_count() * scale)).norm()
        for loss in (reconstruction_loss, adversarial_loss)
        for gradient in torch.autograd.grad(loss * scale, last_layer, retain_graph=True)
    ]
    ratio = norms[0] / (norms[1] + DELTA)
    return torch.where(torch.isfinite(torch.stack(norms)).all(), ratio.clamp(max=largest), 0.0).detach()
