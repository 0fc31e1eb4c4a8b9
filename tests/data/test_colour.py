"""Colours against expectations computed from the specifications: colour keys, premultiplied alpha, colour profiles."""

import struct

import numpy as np
import pytest
from data.test_decode import luma, noise, over_white, png_bytes, png_chunk
from PIL import Image, ImageCms, features

from smalti.data import ImageFiles, TransformConfig, decode, ordered_batches
from smalti.data.decode import DAMAGE, load_image

ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""Linear Adobe RGB (1998) to XYZ under D50, as its profile says."""
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""Linear sRGB to XYZ under D50."""


def profile_bytes(kind: bytes, gamma: float, to_xyz: np.ndarray | None = None) -> bytes:
    """An ICC profile of version 2 written from its specification: a matrix and a power, or a power for grey."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"

    def xyz(values) -> bytes:
        return b"XYZ " + struct.pack(">Iiii", 0, *(round(float(value) * 65536) for value in values))

    tags = [(b"wtpt", xyz((0.9642, 1.0, 0.8249)))]
    if to_xyz is None:
        tags += [(b"kTRC", curve)]
    else:
        tags += [(name + b"XYZ", xyz(column)) for name, column in zip((b"r", b"g", b"b"), to_xyz.T, strict=True)]
        tags += [(name + b"TRC", curve) for name in (b"r", b"g", b"b")]
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags:
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", kind, b"XYZ ") + bytes(12) + b"acsp"
    return (
        header.ljust(68, b"\0")
        + struct.pack(">iii", 63190, 65536, 54061)
        + bytes(48)
        + struct.pack(">I", len(tags))
        + table
        + body
    )


def encoded(linear: np.ndarray) -> np.ndarray:
    """The transfer function of sRGB (IEC 61966-2-1), to 0...255."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def from_adobe(rgb: np.ndarray) -> np.ndarray:
    linear = (rgb / 255.0) ** (563 / 256)
    return encoded(linear @ (np.linalg.inv(SRGB) @ ADOBE_RGB).T)


ADOBE_PROFILE = profile_bytes(b"RGB ", 563 / 256, ADOBE_RGB)
LOSSLESS = {"png": {}, "tif": {}, "webp": {"lossless": True, "exact": True}}


# ---- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_adobe_rgb_becomes_srgb(tmp_path, suffix):
    rgb = noise(20, 30, 3)
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", icc_profile=ADOBE_PROFILE, **LOSSLESS[suffix])
    assert np.abs(load_image(tmp_path / f"a.{suffix}") - from_adobe(rgb)).max() <= 2
    assert np.abs(load_image(tmp_path / f"a.{suffix}", channels=1) - luma(from_adobe(rgb))).max() <= 2
    assert np.abs(from_adobe(rgb) - rgb).max() > 20  # what the profile is worth


def test_alpha_and_palettes_keep_their_profile(tmp_path):
    rgba = noise(16, 16, 4)
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=ADOBE_PROFILE)
    expected = over_white(np.concatenate([from_adobe(rgba[:, :, :3]), rgba[:, :, 3:]], 2))
    assert np.abs(load_image(tmp_path / "a.png").astype(int) - expected).max() <= 2
    palette, codes = noise(16, 3), noise(9, 13) % 16
    picture = Image.frombytes("P", (13, 9), codes.tobytes())
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "p.png", icc_profile=ADOBE_PROFILE)
    assert np.abs(load_image(tmp_path / "p.png") - from_adobe(palette[codes])).max() <= 2


def test_a_grey_profile(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = encoded((grey / 255.0) ** 1.8)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile_bytes(b"GRAY", 1.8))
    Image.fromarray(np.stack([grey, 0 * grey + 255], 2), "LA").save(
        tmp_path / "b.png", icc_profile=profile_bytes(b"GRAY", 1.8)
    )
    for name in ("a.png", "b.png"):
        got = load_image(tmp_path / name)
        assert np.abs(got[:, :, 0] - expected).max() <= 2
        assert (got == got[:, :, :1]).all()


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        profile_bytes(b"GRAY", 1.8),
        b"no profile at all",
        ADOBE_PROFILE[:200],
        ADOBE_PROFILE[:128] + bytes(len(ADOBE_PROFILE) - 128),
    ],
    ids=["sRGB", "of grey", "text", "cut off", "emptied"],
)
def test_pixels_stay_where_the_profile_is_srgb_or_no_use(tmp_path, profile):
    rgb = noise(20, 30, 3)
    for suffix, options in LOSSLESS.items():
        Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", icc_profile=profile, **options)
        np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), rgb)


# ---- colour keys and alpha -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "key"), [(1, 0), (1, 1), (2, 2), (4, 9), (8, 200), (16, 0x1234)])
def test_the_colour_key_of_grey_at_every_depth(tmp_path, depth, key):
    values = np.arange(16) % 2**depth if depth < 8 else np.array([0, key, key ^ 1, 255] * 4)
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    marked = png_chunk(b"tRNS", struct.pack(">H", key))
    (tmp_path / "a.png").write_bytes(png_bytes(16, 1, depth, 0, [row], marked))
    expected = np.where(values == key, 255, np.rint(values / (2**depth - 1) * 255)).astype(int)
    assert load_image(tmp_path / "a.png", channels=1).ravel().tolist() == expected.tolist()


def test_the_colour_key_of_16_bit_rgb_is_compared_with_all_its_bits(tmp_path):
    key = (0x1234, 0x5678, 0x9ABC)
    pixels = np.array([key, (0x1235, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9A00), key, (0, 0, 0)], ">u2")
    marked = png_chunk(b"tRNS", struct.pack(">3H", *key))
    (tmp_path / "a.png").write_bytes(png_bytes(5, 1, 16, 2, [pixels.tobytes()], marked))
    expected = (pixels >> 8).astype(np.uint8)
    expected[[0, 3]] = 255
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[0], expected)


def test_premultiplied_grey_and_colour(tmp_path):
    """TIFF 6.0 with ExtraSamples 1: colours have been multiplied by alpha, so over white they are c + 255 - alpha."""
    opens_grey = features.version("pil") >= "13"  # an older Pillow refuses grey with premultiplied alpha
    for samples in (2, 4) if opens_grey else (4,):
        pixels = noise(5, 7, samples)
        pixels[:, :, :-1] = pixels[:, :, :-1].astype(int) * pixels[:, :, -1:] // 255
        tags = [(256, 4, 1, 7), (257, 4, 1, 5), (259, 3, 1, 1), (262, 3, 1, 1 if samples == 2 else 2)]
        tags += [(277, 3, 1, samples), (278, 4, 1, 5), (279, 4, 1, pixels.size), (338, 3, 1, 1)]
        bits_at = 8 + pixels.size
        bits = (258, 3, 2, 8 | 8 << 16) if samples == 2 else (258, 3, 4, bits_at)
        entries = sorted([*tags, bits, (273, 4, 1, 8)])
        start = bits_at + 8
        directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        head = b"II*\0" + struct.pack("<I", start) + pixels.tobytes() + struct.pack("<4H", 8, 8, 8, 8)
        (tmp_path / "a.tif").write_bytes(head + directory + bytes(4))
        expected = pixels[:, :, :-1].astype(int) + 255 - pixels[:, :, -1:]
        assert np.abs(load_image(tmp_path / "a.tif") - expected).max() <= 1


# ---- one odd file does not end a job ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", DAMAGE, ids=lambda error: error.__name__)
def test_whatever_happens_while_a_file_becomes_pixels_is_its_own_fault(tmp_path, monkeypatch, error):
    for name in ("bad", "good"):
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / f"{name}.png")
    convert = decode.grey_or_rgb

    def fails(image, name, channels):
        if "bad" in name:
            raise error("conversion from La to L not supported")
        return convert(image, name, channels)

    monkeypatch.setattr(decode, "grey_or_rgb", fails)
    source = ImageFiles(tmp_path)
    (batch,) = ordered_batches(source, TransformConfig(size=8), 2)
    assert batch.keys == ("good.png",)
    assert "conversion from La to L not supported" in source.unreadable["bad.png"]
