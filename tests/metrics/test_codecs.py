"""JPEG and WebP at a given price against trying every quality, and the hash of pixels."""

import io

import pytest
import torch
from PIL import Image

from smalti.data import open_images
from smalti.metrics import PixelHash, code_near
from smalti.metrics.codecs import OPTIONS, QUALITIES


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(open_images("embedded:test").load(0)[100:164, 180:260].copy()).permute(2, 0, 1)


def every_quality(image, codec):
    sizes = {}
    for quality in range(QUALITIES[codec][0], QUALITIES[codec][1] + 1):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, quality=quality, **OPTIONS[codec])
        sizes[quality] = len(buffer.getvalue())
    return sizes


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
@pytest.mark.parametrize("wanted", [0, 900, 1500, 2500, 10**6])
def test_the_file_is_as_near_in_bytes_as_any_quality_allows(photo, codec, wanted):
    sizes = every_quality(photo, codec)
    coded = code_near(photo, codec, wanted)
    assert coded.num_bytes == sizes[coded.quality]
    best = min(abs(size - wanted) for size in sizes.values())
    assert abs(coded.num_bytes - wanted) <= best + 0.01 * coded.num_bytes  # sizes are not quite monotonous
    assert coded.image.shape == photo.shape


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_more_bytes_buy_a_better_picture(photo, codec):
    errors = [(code_near(photo, codec, n).image.double() - photo.double()).square().mean() for n in (800, 1600, 3200)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_grey_stays_grey(photo, codec):
    grey = photo[:1]
    coded = code_near(grey, codec, 2000)
    assert coded.image.shape == grey.shape
    assert (coded.image.double() - grey.double()).square().mean() < 50


def test_the_hash_is_of_pixels_and_order_not_of_batches(photo):
    images = torch.stack([photo, photo.flip(0), photo.flip(1)])

    def digest(*batches):
        pixels = PixelHash()
        for batch in batches:
            pixels.update(batch)
        return pixels.compute()

    assert digest(images) == digest(images[:1], images[1:]) == digest(*images.split(1))
    changed = images.clone()
    changed[2, 0, 0, 0] ^= 1
    others = [images[:2], images.flip(0), images.transpose(2, 3), images.reshape(3, 3, 32, 160), changed]
    assert len({digest(images), *map(digest, others)}) == 6
