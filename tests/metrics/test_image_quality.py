"""PSNR and SSIM against scikit-image, and their independence of the batch."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from smalti.metrics import ImageQuality, mean_color, psnr, ssim
from smalti.ops.pixels import to_float


def pictures(count, height, width, seed=0):
    """`count` crops of a photograph and noisy versions of them, uint8 (count, 3, H, W)."""
    generator = np.random.default_rng(seed)
    photo = astronaut().transpose(2, 0, 1)
    image = np.stack([photo[:, 40 * i : 40 * i + height, 90 : 90 + width] for i in range(count)])
    noise = generator.normal(0, 5 + 10 * np.arange(count)[:, None, None, None], image.shape)
    noisy = (image + noise).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(noisy), torch.from_numpy(image)


def ssim_by_scikit_image(reconstruction, image):
    """SSIM with reflected borders: scikit-image drops a border of 5, so one is added first."""
    padded = [np.pad(x.numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in (reconstruction, image)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(*padded, channel_axis=0, data_range=255, **options)


def test_psnr_and_ssim_agree_with_scikit_image():
    reconstruction, image = pictures(3, 37, 50)
    for i in range(3):
        a, b = reconstruction[i].numpy(), image[i].numpy()
        assert psnr(reconstruction, image)[i].item() == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-5)
        oracle = ssim_by_scikit_image(reconstruction[i], image[i])
        assert ssim(reconstruction, image)[i].item() == pytest.approx(oracle, abs=1e-4)


def test_floats_are_rounded_as_a_saved_picture_would_be():
    reconstruction, image = pictures(2, 20, 20)
    shifted = to_float(reconstruction) + 0.4 / 127.5  # less than half a grey level
    assert torch.equal(psnr(shifted, to_float(image)), psnr(reconstruction, image))
    assert torch.equal(ssim(shifted, image), ssim(reconstruction, image))
    overshoot = torch.where(reconstruction == 255, 3.0, to_float(reconstruction))
    assert torch.equal(psnr(overshoot, image), psnr(reconstruction, image))


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 5), max_size=3))
def test_batches_do_not_matter(cuts):
    reconstruction, image = pictures(6, 16, 24)
    expected = [peak_signal_noise_ratio(b.numpy(), a.numpy()) for a, b in zip(reconstruction, image, strict=True)]
    structure = [ssim_by_scikit_image(a, b) for a, b in zip(reconstruction, image, strict=True)]
    quality = ImageQuality()
    for part, original in zip(
        torch.tensor_split(reconstruction, sorted(cuts)), torch.tensor_split(image, sorted(cuts)), strict=True
    ):
        quality.update(part, original)
    result = quality.compute()
    assert result["images"] == result["ssim_images"] == 6
    assert result["psnr"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert result["ssim"] == pytest.approx(np.mean(structure), abs=1e-4)


def test_psnr_and_ssim_agree_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    for height, width in ((11, 11), (12, 40), (37, 50)):
        reconstruction, image = pictures(3, height, width)
        a, b = reconstruction.double(), image.double()
        theirs = functional.peak_signal_noise_ratio(a, b, data_range=255.0, dim=(1, 2, 3), reduction="none")
        torch.testing.assert_close(psnr(reconstruction, image), theirs, rtol=1e-7, atol=0)
        theirs = functional.structural_similarity_index_measure(a, b, data_range=255.0, reduction="none")
        torch.testing.assert_close(ssim(reconstruction, image).double(), theirs, rtol=0, atol=1e-6)


def test_a_broken_torchmetrics_costs_nothing():
    """It imports what happens to be installed beside it (torch-fidelity, transformers), any of which may be broken."""
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import torch, smalti.jobs.train, smalti.jobs.evaluate, smalti.metrics as m\n"
        "white, quality = torch.ones(1, 3, 12, 12), m.ImageQuality()\n"
        "quality.update(-white, white); print(quality.compute()['ssim'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 0.01


def test_mixed_sizes_weigh_one_image_each():
    quality = ImageQuality()
    values = []
    for count, height, width in ((1, 11, 30), (3, 40, 20)):
        reconstruction, image = pictures(count, height, width)
        quality.update(reconstruction, image)
        values += psnr(reconstruction, image).tolist()
    assert quality.compute()["psnr"] == pytest.approx(np.mean(values))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (10, 64), (64, 3)])
def test_images_below_the_window_have_psnr_but_no_ssim(height, width):
    reconstruction, image = pictures(2, height, width)
    quality = ImageQuality()
    quality.update(reconstruction, image)
    result = quality.compute()
    assert (result["images"], result["ssim_images"], result["ssim"]) == (2, 0, None)
    assert result["psnr"] == pytest.approx(psnr(reconstruction, image).mean().item())
    with pytest.raises(ValueError, match=f"{height} x {width}.*11 x 11"):
        ssim(reconstruction, image)
    quality.update(*pictures(1, 11, 11))
    assert quality.compute()["ssim_images"] == 1


def test_exact_images_are_counted_apart():
    reconstruction, image = pictures(2, 16, 16)
    quality = ImageQuality()
    quality.update(image, image)
    assert quality.compute()["psnr"] is None
    assert quality.compute()["exact_images"] == 2
    assert quality.compute()["ssim"] == pytest.approx(1.0, abs=1e-6)
    quality.update(reconstruction, image)
    assert quality.compute()["psnr"] == pytest.approx(psnr(reconstruction, image).mean().item())
    assert quality.compute()["images"] == 4


def test_mean_color_by_hand():
    image = torch.tensor([[[[0, 10], [20, 31]], [[7, 7], [7, 7]]]], dtype=torch.uint8)
    assert mean_color(image)[0, 0].unique().tolist() == [15]  # 15.25
    error = (15**2 + 5**2 + 5**2 + 16**2) / 8
    quality = ImageQuality()
    quality.update(image, image)
    assert quality.compute()["psnr_mean_color"] == pytest.approx(10 * math.log10(255**2 / error))


def test_nothing_measured_is_none_not_nan():
    assert ImageQuality().compute()["psnr"] is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="reconstruction: got NaN or infinity"):
        ImageQuality().update(torch.full((1, 3, 4, 4), bad), torch.zeros(1, 3, 4, 4))
