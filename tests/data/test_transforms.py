"""Resize, crop, flip: against a float64 Lanczos written from its formula, exact slices, and distributions."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.data.decode import load_picture
from smalti.data.transforms import TransformConfig

RNG = np.random.default_rng


def noise(height, width, channels=3):
    return RNG(height + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def lanczos_matrix(length: int, resized: int) -> np.ndarray:
    """Row r holds the weights of the `length` input pixels in output pixel r: windowed sinc, widened when reducing."""
    scale = max(length / resized, 1.0)
    centre = (np.arange(resized) + 0.5) * length / resized - 0.5
    distance = (np.arange(length)[None] - centre[:, None]) / scale
    weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)


def reference(image: np.ndarray, tall: int, wide: int) -> np.ndarray:
    """The whole picture resized in float64."""
    rows, columns = lanczos_matrix(image.shape[0], tall), lanczos_matrix(image.shape[1], wide)
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(np.float64))


def hwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("shape", "size", "covering"),
    [
        ((61, 40), 16, (24, 16)),  # reduce: the short side becomes 16, 61 * 16 / 40 = 24.4
        ((40, 61), 16, (16, 24)),
        ((7, 9), 21, (21, 27)),  # enlarge
        ((33, 33), (10, 30), (30, 30)),
        ((50, 20), (8, 8), (20, 8)),
        ((42, 40), 16, (17, 16)),  # an odd rest: the smaller half is cut off above
        ((40, 42), 16, (16, 17)),
        ((5, 90), (5, 90), (5, 90)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_center_crop_of_a_lanczos_resize(shape, size, covering, channels):
    image = noise(*shape, channels) // 4 + 96  # far from 0 and 255, where the order of the passes would matter
    height, width = (size, size) if isinstance(size, int) else size
    got = hwc(TransformConfig(size=size).apply(image))
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    expected = reference(image, *covering)[top : top + height, left : left + width]
    assert got.shape == (height, width, channels)
    assert np.abs(got - expected).max() < 1.6  # eight-bit rounding of each of the two passes


@pytest.mark.parametrize("crop", ["random", "center"])
def test_reducing_does_not_alias(crop):
    checks = ((np.indices((500, 500)).sum(0) % 2) * 255).astype(np.uint8)[:, :, None]
    inner = hwc(TransformConfig(size=32, crop=crop).apply(checks, RNG(0)))[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127.5).max() <= 1.5


def test_the_faster_filter_of_strong_reductions_in_training_is_close_to_the_exact_one():
    image = hwc(TransformConfig(size=480).apply(noise(60, 60)))  # detail down to eight pixels, as in a photograph
    exact = hwc(TransformConfig(size=32).apply(image)).astype(int)
    fast = hwc(TransformConfig(size=32, crop="random").apply(image, RNG(0)))
    assert 0 < np.abs(fast - exact).max() <= 6
    assert np.abs(fast - exact).mean() < 1


def test_crops_of_a_jpeg_decoded_smaller_are_close_to_the_exact_ones(tmp_path):
    detailed = Image.fromarray(noise(100, 150)).resize((1200, 800), Image.Resampling.BICUBIC)
    detailed.save(tmp_path / "a.jpg", quality=95)
    transform = TransformConfig(size=32, crop="random", zoom=2.0, flip=True)
    assert transform.enough == 128
    small, whole = load_picture(tmp_path / "a.jpg", enough=transform.enough), load_picture(tmp_path / "a.jpg")
    assert small.size == (300, 200)
    for seed in range(10):
        one, other = (hwc(transform.apply(picture, RNG(seed))).astype(int) for picture in (small, whole))
        assert np.abs(one - other).mean() < 1
    assert TransformConfig(size=32).enough is None
    assert TransformConfig(size=(8, 32), crop="random").enough == 64


def test_a_picture_of_the_right_size_is_untouched_and_copied():
    image = noise(16, 16)
    got = TransformConfig(size=16).apply(image)
    np.testing.assert_array_equal(hwc(got), image)
    got.zero_()
    assert image.any()
    assert got.is_contiguous()


def test_native_size_keeps_every_pixel():
    image = noise(13, 7)
    np.testing.assert_array_equal(hwc(TransformConfig().apply(image)), image)
    np.testing.assert_array_equal(hwc(TransformConfig(crop="random").apply(image, RNG(0))), image)


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (1, 1)])
def test_one_pixel_wide_pictures_need_no_giant_strip(shape):
    image = (np.arange(shape[0] * shape[1]) // 400).astype(np.uint8).reshape(*shape, 1)
    for transform in (TransformConfig(size=64), TransformConfig(size=64, crop="random", zoom=4.0)):
        got = hwc(transform.apply(image, RNG(0)))
        assert got.shape == (64, 64, 1)
        assert int(got.max()) - int(got.min()) <= 1
    middle = hwc(TransformConfig(size=64).apply(image))[32, 32, 0]
    assert abs(int(middle) - int(image.ravel()[image.size // 2])) <= 1


def test_a_random_crop_at_full_scale_is_an_exact_slice_and_reaches_every_place_equally():
    image = noise(8, 12)
    transform, generator = TransformConfig(size=8, crop="random"), RNG(0)
    slices = [image[:, left : left + 8] for left in range(5)]
    counts = np.zeros(5, int)
    for _ in range(2000):
        got = hwc(transform.apply(image, generator))
        counts += [np.array_equal(got, piece) for piece in slices]
    assert counts.sum() == 2000
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi-squared, 4 degrees of freedom, 0.1 %


def test_flip_mirrors_left_and_right_half_of_the_time():
    image = noise(8, 8)
    transform, generator = TransformConfig(size=8, flip=True), RNG(0)
    flipped = 0
    for _ in range(1000):
        got = hwc(transform.apply(image, generator))
        mirrored = np.array_equal(got, image[:, ::-1])
        assert mirrored or np.array_equal(got, image)
        flipped += mirrored
    assert abs(flipped - 500) < 55  # 3.5 standard deviations


def test_zoom_is_log_uniform_between_one_and_its_value():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, axis=0)
    transform, generator = TransformConfig(size=32, crop="random", zoom=4.0), RNG(0)
    seen = []
    for _ in range(400):
        row = hwc(transform.apply(ramp, generator))[16, 4:28, 0].astype(np.float64)
        seen.append(8 / ((row[-1] - row[0]) / (len(row) - 1)))  # 256 / 32 input pixels a step without zoom
    logs = np.sort(np.log(seen) / np.log(4))
    assert logs[0] > -0.05
    assert logs[-1] < 1.05
    assert np.abs(logs - (np.arange(400) + 0.5) / 400).max() < 0.09  # Kolmogorov-Smirnov, 0.3 %


def test_switching_the_flip_off_leaves_the_crops_as_they_were():
    image = noise(40, 60)
    for seed in range(10):
        one = TransformConfig(size=16, crop="random", zoom=2.0).apply(image, RNG(seed))
        other = TransformConfig(size=16, crop="random", zoom=2.0, flip=True).apply(image, RNG(seed))
        assert torch.equal(one, other) or torch.equal(one, other.flip(2))


def test_the_same_generator_gives_the_same_crop_and_another_gives_another():
    image, transform = noise(50, 70), TransformConfig(size=16, crop="random", zoom=3.0, flip=True)
    crops = [transform.apply(image, RNG(seed)) for seed in range(5)]
    assert all(torch.equal(crop, transform.apply(image, RNG(seed))) for seed, crop in enumerate(crops))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(crops, 2))


def test_every_extreme_of_the_drawn_numbers_stays_inside():
    class Fixed(np.random.Generator):
        def __init__(self, values):
            super().__init__(np.random.PCG64(0))
            self.values = values

        def random(self, count):
            return np.array(self.values[:count])

    ends = (0.0, 1.0 - 2**-53)
    for shape in [(17, 31), (1, 999), (640, 427)]:
        for values in itertools.product(ends, repeat=4):
            transform = TransformConfig(size=(13, 29), crop="random", zoom=7.3, flip=True)
            assert transform.apply(noise(*shape), Fixed(values)).shape == (3, 13, 29)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size: got 0, expected sides of 1 to 65536 pixels"),
        ({"size": (8, -1)}, r"size: got \(8, -1\)"),
        ({"size": 8, "zoom": 0.5, "crop": "random"}, "zoom: got 0.5, expected a finite number of at least 1"),
        ({"size": 8, "zoom": float("nan"), "crop": "random"}, "zoom: got nan"),
        ({"size": 8, "zoom": 2.0}, "zoom: got 2.0, expected 1 unless crop is random and a size is given"),
        ({"zoom": 2.0, "crop": "random"}, "zoom: got 2.0, expected 1 unless"),
    ],
)
def test_bad_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformConfig(**fields)


def test_randomness_needs_a_generator():
    for transform in (TransformConfig(size=4, crop="random"), TransformConfig(size=4, flip=True)):
        with pytest.raises(ValueError, match="generator: got none"):
            transform.apply(noise(8, 8))
        assert not transform.centered().is_random
        assert transform.centered().size == 4
