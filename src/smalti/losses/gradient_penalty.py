"""R1: penalty on the squared gradient of the discriminator at real images. It keeps the discriminator smooth.

Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?" (arXiv 1801.04406), equation 9.
The other regularisation is `lecam.py`: it limits the logits, costs almost no time and helps with few images. R1 limits
the gradient and needs a second derivative, which about doubles the time of a discriminator step.

R1：惩罚判别器在真实图像处梯度的平方，使判别器保持平滑。另一种正则化见 `lecam.py`：它限制 logit 本身，几乎不花时间，
适合图像较少的情况；R1 限制梯度，需要二阶导数，判别器一步的时间大约加倍。
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from smalti.ops.device import without_autocast


def r1(discriminator: Callable[[Tensor], Tensor], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """E ||grad D(x)||^2 / 2 over the real images x: equation 9 for gamma = 1. Its usual weight is 10.

    The paper's D has one logit per image. With P patches, each patch counts as a sample:
    ||grad (sum of logits)||^2 / P. For patches that do not overlap this is the mean of their penalties. So the value
    does not depend on the image size.

    Args:
        discriminator: images to logits (B, 1, h, w). Logits of one image must not depend on other images (no batch
            normalisation), else the gradient mixes images.
        image: real images (B, C, H, W), detached from their graph.

    Returns:
        A scalar that carries a gradient to the discriminator's weights; computed in fp32, autocast or not.
    """
    image = image.detach().requires_grad_()
    with without_autocast(image):  # squares of small gradients need more than bf16's precision
        logits = discriminator(image)
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return gradient.square().sum() / (2 * logits.numel())
