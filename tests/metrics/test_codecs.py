"""Codecs at a given price against trying every quality, and the hash of pixels."""

import io
import sys

import pytest
import torch
from PIL import Image

from smalti.data import open_images
from smalti.metrics import CURVES, PixelHash, code_at, code_near, require_codec
from smalti.metrics.codecs import OPTIONS, QUALITIES


@pytest.fixture(scope="module", params=["jpeg", "webp", "avif", "jxl"])
def codec(request):
    if request.param == "jxl":
        pytest.importorskip("pillow_jxl")
    require_codec(request.param)
    return request.param


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


def test_the_file_is_as_near_in_bytes_as_any_quality_allows(photo, codec, monkeypatch):
    monkeypatch.setitem(OPTIONS, "avif", {"format": "AVIF", "speed": 10})  # all qualities in a tenth of the time
    sizes = every_quality(photo, codec)
    for wanted in (0, 900, 1500, 2500, 10**6):
        coded = code_near(photo, codec, wanted)
        assert coded.num_bytes == sizes[coded.quality]
        assert coded.too_large == (coded.quality == QUALITIES[codec][0] and coded.num_bytes > wanted)
        assert coded.too_large == (wanted < min(sizes.values()))
        best = min(abs(size - wanted) for size in sizes.values())
        assert abs(coded.num_bytes - wanted) <= best + 0.02 * coded.num_bytes  # sizes are not quite monotonous
        assert coded.image.shape == photo.shape


def test_a_curve_rises_in_bytes_and_in_quality(photo, codec):
    points = [code_at(photo, codec, quality) for quality in CURVES[codec]]
    sizes = [point.num_bytes for point in points]
    errors = [(point.image.double() - photo.double()).square().mean().item() for point in points]
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)
    assert [point.quality for point in points] == list(CURVES[codec])


def test_more_bytes_buy_a_better_picture(photo, codec):
    errors = [(code_near(photo, codec, n).image.double() - photo.double()).square().mean() for n in (800, 1600, 3200)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_grey_stays_grey(photo, codec):
    grey = photo[:1]
    coded = code_near(grey, codec, 2000)
    assert coded.image.shape == grey.shape
    assert (coded.image.double() - grey.double()).square().mean() < 50


def test_a_missing_codec_says_what_to_install(monkeypatch):
    monkeypatch.setattr("smalti.metrics.codecs.features.check", lambda name: False)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    for name, install in (("avif", "pip install pillow"), ("jxl", "pip install pillow-jxl-plugin")):
        with pytest.raises(ValueError, match=f"codecs: got {name}.*{install}"):
            require_codec(name)


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
