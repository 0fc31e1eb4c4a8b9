"""R1: the discriminator's gradient at real images, squared. It stops a discriminator from growing ever steeper.

Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?" (arXiv 1801.04406), equation 9.
The other brake is `lecam.py`: it holds the logits themselves, costs nothing and helps when images are few; R1 holds
their slope and needs a second derivative, which about doubles the price of the discriminator's step.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def r1(discriminator: Callable[[Tensor], Tensor], image: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """E ||grad D(x)||^2 / 2 over the real images x: equation 9 for gamma = 1. Its usual weight is 10.

    The paper's D has one logit an image. Of P patches each counts as a sample: ||grad (sum of logits)||^2 / P, which
    for patches that do not overlap is the mean of their own penalties. So the number does not depend on the image size.

    Args:
        discriminator: images to logits (B, 1, h, w). Each image must be judged alone (no batch normalisation), else the
            gradient mixes images.
        image: real images (B, C, H, W); their own history gets no gradient.

    Returns:
        A scalar that carries a gradient to the discriminator's weights; computed in fp32, autocast or not.
    """
    image = image.detach().requires_grad_()
    with torch.autocast(image.device.type, enabled=False):  # squares of small gradients leave bf16's digits
        logits = discriminator(image)
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return gradient.square().sum() / (2 * logits.numel())
