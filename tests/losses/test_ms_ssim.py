"""MS-SSIM against scikit-image for one scale and against scipy's Gaussian filter, in float64, for several."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut
from skimage.metrics import structural_similarity

from smalti.losses import ms_ssim
from smalti.losses.ms_ssim import EXPONENTS, scale_exponents


def pair(height, width, batch=1, noise=0.2):
    """A photograph and a noisy, darker version of it, (B, 3, H, W) float64 in [-1, 1]."""
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).double() / 127.5 - 1
    crops = [photo[:, 30 * i : 30 * i + height, 100 : 100 + width] for i in range(batch)]
    image = torch.stack(crops)
    generator = torch.Generator().manual_seed(height * width)
    distorted = image * 0.8 - 0.1 + noise * torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return distorted.clamp(-1, 1), image


def similarities_by_scipy(x_HW, y_HW):
    """Mean SSIM and mean contrast-structure over the pixels whose window lies inside, for planes in [0, 1]."""

    def blur(plane):
        return gaussian_filter(plane, 1.5, truncate=3.5)[5:-5, 5:-5]

    mu_x, mu_y = blur(x_HW), blur(y_HW)
    var_x, var_y = blur(x_HW**2) - mu_x**2, blur(y_HW**2) - mu_y**2
    contrast = (2 * (blur(x_HW * y_HW) - mu_x * mu_y) + 0.03**2) / (var_x + var_y + 0.03**2)
    luminance = (2 * mu_x * mu_y + 0.01**2) / (mu_x**2 + mu_y**2 + 0.01**2)
    return (luminance * contrast).mean(), contrast.mean()


def ms_ssim_by_scipy(x_HW, y_HW, exponents):
    product = 1.0
    for scale, exponent in enumerate(exponents):
        full, contrast = similarities_by_scipy(x_HW, y_HW)
        product *= (full if scale == len(exponents) - 1 else contrast) ** exponent
        height, width = (side // 2 * 2 for side in x_HW.shape)
        x_HW, y_HW = (p[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for p in (x_HW, y_HW))
    return product


@pytest.mark.parametrize(("height", "width"), [(11, 11), (16, 21), (21, 64)])
def test_one_scale_is_the_ssim_of_scikit_image(height, width):
    reconstruction, image = pair(height, width)
    oracle = structural_similarity(
        ((reconstruction[0] + 1) / 2).numpy(),
        ((image[0] + 1) / 2).numpy(),
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert 1 - ms_ssim(reconstruction, image).item() == pytest.approx(oracle, abs=1e-9)


@pytest.mark.parametrize(("height", "width", "scales"), [(32, 32, 2), (64, 47, 3), (95, 130, 4), (176, 181, 5)])
def test_several_scales_against_scipy(height, width, scales):
    reconstruction, image = pair(height, width, batch=2)
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    x, y = ((reconstruction + 1) / 2).numpy(), ((image + 1) / 2).numpy()
    planes = [ms_ssim_by_scipy(x[b, c], y[b, c], exponents / exponents.sum()) for b in range(2) for c in range(3)]
    assert 1 - ms_ssim(reconstruction, image).item() == pytest.approx(np.mean(planes), abs=1e-9)
    assert 1 - ms_ssim(reconstruction.float(), image.float()).item() == pytest.approx(np.mean(planes), abs=1e-4)


def test_the_number_of_scales_follows_the_shorter_side():
    assert [len(scale_exponents(side)) for side in (1, 10, 21, 22, 43, 44, 87, 88, 175, 176, 4000)] == [
        1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5,
    ]  # fmt: skip
    assert all(sum(scale_exponents(side)) == pytest.approx(1) for side in (1, 32, 64, 128, 256))
    assert scale_exponents(256) == pytest.approx(EXPONENTS, abs=1e-4)  # the paper's sum to 1.0001


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (7, 3), (32, 32), (33, 57), (180, 176)])
def test_equal_images_cost_nothing_and_others_something(height, width):
    reconstruction, image = pair(height, width)
    assert ms_ssim(image, image).item() == pytest.approx(0, abs=1e-12)
    assert 0 < ms_ssim(reconstruction, image).item() <= 1


def test_one_pixel_is_its_luminance_term():
    x, y = 0.75, 0.25  # of [0, 1]; there is no contrast in one pixel
    image = torch.full((1, 1, 1, 1), y * 2 - 1, dtype=torch.float64)
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert 1 - ms_ssim(torch.full_like(image, x * 2 - 1), image).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("side", [5, 14, 24])
def test_gradient_against_finite_differences(side):
    reconstruction, image = pair(side, side + 1)
    reconstruction, image = reconstruction[:, :2], image[:, :2]
    assert torch.autograd.gradcheck(lambda x: ms_ssim(x, image), (reconstruction.requires_grad_(),), fast_mode=True)


def test_gradient_is_finite_at_the_edges_of_the_definition():
    """Anti-correlated images, whose similarity is negative, and flat ones, whose variance is zero."""
    _, image = pair(32, 32)
    for start in (-image, torch.zeros_like(image), image.clone()):
        reconstruction = start.float().requires_grad_()
        ms_ssim(reconstruction, image.float()).backward()
        assert torch.isfinite(reconstruction.grad).all()


def test_a_negative_similarity_does_not_silence_the_other_scales():
    """An inverted checkerboard over coarse blocks of the right sign: wrong at 32 x 32, improvable at 16 x 16."""
    checkers = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(1, 1, 32, 32)
    generator = torch.Generator().manual_seed(0)
    blocks = (torch.rand(1, 1, 16, 16, generator=generator) - 0.5).repeat_interleave(2, 2).repeat_interleave(2, 3)
    image = 0.5 * checkers + 0.4 * blocks
    reconstruction = (-0.5 * checkers + 0.2 * blocks).requires_grad_()
    loss = ms_ssim(reconstruction, image)
    loss.backward()
    assert reconstruction.grad.abs().sum() > 1e-3
    assert ms_ssim(reconstruction.detach() - reconstruction.grad, image) < loss


def test_descending_the_gradient_restores_the_image():
    reconstruction, image = pair(32, 32)
    reconstruction = reconstruction.float().requires_grad_()
    before = (reconstruction - image).square().mean().item()
    optimizer = torch.optim.Adam([reconstruction], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = ms_ssim(reconstruction, image.float())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    assert (reconstruction - image).square().mean().item() < before / 3


def test_batch_is_the_mean_of_its_images():
    reconstruction, image = pair(48, 48, batch=3)
    each = [ms_ssim(reconstruction[i : i + 1], image[i : i + 1]) for i in range(3)]
    assert ms_ssim(reconstruction, image).item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-12)


def test_autocast_does_not_lower_the_precision():
    reconstruction, image = (x.float() for x in pair(48, 48))
    plain = ms_ssim(reconstruction, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ms_ssim(reconstruction, image), plain)
