"""What is written is read back; what cannot be written is refused before anything is touched."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.decode import load_image
from smalti.data.save import save_image

RGB = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RGB[:, :, :1]


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "tiff", "webp"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_lossless_formats_return_every_pixel(tmp_path, suffix, pixels):
    save_image(tmp_path / f"a.{suffix}", pixels)
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}", pixels.shape[2]), pixels)
    save_image(tmp_path / f"b.{suffix}", torch.from_numpy(pixels).permute(2, 0, 1))
    np.testing.assert_array_equal(load_image(str(tmp_path / f"b.{suffix}"), pixels.shape[2]), pixels)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpeg_is_close_even_on_single_pixel_colour(tmp_path, suffix):
    checks = np.zeros((16, 16, 3), np.uint8) + np.array([60, 120, 90], np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = (160, 100, 90)
    save_image(tmp_path / f"a.{suffix}", checks)
    assert np.abs(load_image(tmp_path / f"a.{suffix}").astype(int) - checks).mean() < 3


def test_the_type_decides_the_layout_never_the_sizes():
    cube = RGB[:3, :3]  # (3, 3, 3): both readings are possible
    for image in (cube, torch.from_numpy(cube).permute(2, 0, 1)):
        file = io.BytesIO()
        save_image(file, image)
        np.testing.assert_array_equal(np.asarray(Image.open(file)), cube)


def test_a_file_object_takes_a_format():
    file = io.BytesIO()
    save_image(file, RGB, format="bmp")
    assert file.getvalue().startswith(b"BM")


def test_nothing_is_overwritten_without_force_and_nothing_is_left_half_done(tmp_path):
    save_image(tmp_path / "a.png", RGB)
    with pytest.raises(FileExistsError):
        save_image(tmp_path / "a.png", RGB[::-1])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), RGB)
    save_image(tmp_path / "a.png", RGB[::-1], force=True)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), RGB[::-1])
    too_wide = np.zeros((1, 20000, 3), np.uint8)  # WebP ends at 16383
    with pytest.raises(ValueError, match="encod"):
        save_image(tmp_path / "b.webp", too_wide)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("a.gif", RGB, r"a\.gif: got suffix '\.gif', expected one of \.bmp"),
        ("a", RGB, "got suffix '', expected one of"),
        ("a.png", RGB[:, :, :2], r"image: got uint8 \(9, 13, 2\), expected a uint8 array \(H, W, C\)"),
        ("a.png", torch.from_numpy(RGB), r"image: got torch.uint8 \(9, 13, 3\), expected a uint8 tensor \(C, H, W\)"),
        ("a.png", RGB[:0], "image: got uint8"),
    ],
)
def test_refusals(tmp_path, name, image, message):
    with pytest.raises(ValueError, match=message):
        save_image(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="format: got 'gif', expected one of bmp"):
        save_image(io.BytesIO(), RGB, format="gif")
