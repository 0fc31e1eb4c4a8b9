"""Every kind of picture against an expectation computed without Pillow's conversions."""

import struct
import sys
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from smalti.data.decode import load_image, load_picture
from smalti.data.source import UnreadableImageError

LOSSLESS = {"png": {}, "bmp": {}, "tif": {}, "webp": {"lossless": True}}
EVERY_FORMAT = LOSSLESS | {"jpg": {"quality": 95}}


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    return (rgb.astype(np.float64) @ [0.299, 0.587, 0.114])[:, :, None]


def over_white(rgba: np.ndarray) -> np.ndarray:
    rgb, alpha = rgba[:, :, :3].astype(np.float64), rgba[:, :, 3:] / 255.0
    return np.floor(rgb * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(width: int, height: int, bits: int, colour: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """A PNG written from the specification, for the kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + body + png_chunk(b"IEND", b"")


def tiff_bytes(width: int, height: int, bits: int, photometric: int, pixels: bytes, order: str = "<") -> bytes:
    """A one-strip grey TIFF written from the specification."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(pixels))]
    start = 8 + len(pixels) + len(pixels) % 2
    directory = struct.pack(f"{order}H", len(tags))
    directory += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    padding = b"\0" * (len(pixels) % 2)
    return magic + struct.pack(f"{order}I", start) + pixels + padding + directory + bytes(4)


def to_8_bits(values: np.ndarray, full_scale: int) -> np.ndarray:
    """round(255 v / full_scale) in exact arithmetic."""
    exact = [int(Fraction(255 * int(v), full_scale) + Fraction(1, 2)) for v in values.ravel()]
    return np.array(exact, np.uint8).reshape(values.shape)[:, :, None]


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("size", [(9, 14), (1, 11), (13, 1), (1, 1)])
def test_rgb_is_exact_in_every_lossless_format_and_any_shape(tmp_path, suffix, size):
    rgb = noise(*size, 3)
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", **LOSSLESS[suffix])
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), rgb)
    grey = load_image(tmp_path / f"a.{suffix}", channels=1)
    assert grey.shape == (*size, 1)
    assert np.abs(grey - luma(rgb)).max() <= 0.51


def test_jpeg_keeps_the_channels_in_their_places(tmp_path):
    rgb = np.zeros((32, 32, 3), np.uint8) + np.array([200, 90, 20], np.uint8)
    for name, options in {"a.jpg": {}, "b.jpeg": {"progressive": True}, "c.JPG": {"subsampling": 0}}.items():
        Image.fromarray(rgb).save(tmp_path / name, "JPEG", quality=95, **options)
        assert np.abs(load_image(tmp_path / name).astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_is_expanded_to_equal_channels_and_kept_for_one(tmp_path, suffix):
    grey = noise(7, 5)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}", channels=1)[:, :, 0], grey)
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), np.stack([grey] * 3, 2))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit(tmp_path, suffix):
    bits = noise(11, 19) > 127
    Image.fromarray(bits).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}", channels=1)[:, :, 0], bits * np.uint8(255))


def test_two_and_four_bit_grey(tmp_path):
    (tmp_path / "two.png").write_bytes(png_bytes(4, 1, 2, 0, [bytes([0b00_01_10_11])]))
    (tmp_path / "four.png").write_bytes(png_bytes(4, 1, 4, 0, [bytes([0x0F, 0x7A])]))
    assert load_image(tmp_path / "two.png", channels=1).ravel().tolist() == [0, 85, 170, 255]
    assert load_image(tmp_path / "four.png", channels=1).ravel().tolist() == [0, 255, 119, 170]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palette(tmp_path, suffix):
    palette, codes = noise(16, 3), noise(9, 13) % 16
    picture = Image.frombytes("P", (13, 9), codes.tobytes())
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), palette[codes])


@pytest.mark.parametrize("kind", ["one entry", "alpha per entry"])
def test_palette_with_transparency_lies_over_white(tmp_path, kind):
    palette, codes = noise(16, 3), noise(9, 13) % 16
    alphas = np.full(16, 255, np.uint8) if kind == "one entry" else noise(16, 1).ravel()
    alphas[5] = 0
    picture = Image.frombytes("P", (13, 9), codes.tobytes())
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "a.png", transparency=5 if kind == "one entry" else alphas.tobytes())
    expected = over_white(np.concatenate([palette, alphas[:, None]], 1)[codes])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), expected)
    assert np.abs(load_image(tmp_path / "a.png", channels=1) - luma(expected)).max() <= 0.51


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_rgba_is_composited_over_white(tmp_path, suffix):
    rgba = noise(16, 16, 4)
    rgba[:4, :, 3], rgba[4:8, :, 3] = 0, 255
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(rgba).save(tmp_path / f"a.{suffix}", **options)
    got = load_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(got, over_white(rgba))
    assert (got[:4] == 255).all()
    assert (got[4:8] == rgba[4:8, :, :3]).all()


def test_grey_with_alpha(tmp_path):
    grey_alpha = noise(8, 8, 2)
    Image.fromarray(grey_alpha, "LA").save(tmp_path / "a.png")
    expected = over_white(grey_alpha[:, :, [0, 0, 0, 1]])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", channels=1), expected[:, :, :1])


def test_a_transparent_colour_key(tmp_path):
    rgb = noise(4, 4, 3)
    rgb[1, 2] = rgb[3, 0] = (10, 20, 30)
    Image.fromarray(rgb).save(tmp_path / "a.png", transparency=(10, 20, 30))
    expected = rgb.copy()
    expected[1, 2] = expected[3, 0] = 255
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), expected)


def test_cmyk_by_the_ink_formula(tmp_path):
    inks = noise(12, 10, 4)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    expected = (255.0 - inks[:, :, :3]) * (255.0 - inks[:, :, 3:]) / 255.0
    assert np.abs(load_image(tmp_path / "a.tif") - expected).max() <= 1.0


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    inks = np.zeros((16, 16, 4), np.uint8) + np.array([10, 200, 120, 30], np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=95)
    expected = (255.0 - inks[0, 0, :3]) * (255.0 - 30) / 255.0
    assert np.abs(load_image(tmp_path / "a.jpg") - expected).max() <= 4


def test_16_bit_png_is_the_rounded_quotient(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)
    values[0, :6] = [0, 65535, 128, 129, 257 * 7 + 128, 257 * 7 + 129]
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", channels=1), to_8_bits(values, 65535))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), to_8_bits(values, 65535).repeat(3, 2))


@pytest.mark.parametrize(("order", "white_is_zero"), [("<", False), ("<", True), (">", False)])
def test_16_bit_tiff_in_both_byte_orders_and_polarities(tmp_path, order, white_is_zero):
    values = np.random.default_rng(1).integers(0, 65536, (5, 7)).astype(f"{order}u2")
    (tmp_path / "a.tif").write_bytes(tiff_bytes(7, 5, 16, int(not white_is_zero), values.tobytes(), order))
    expected = to_8_bits(values, 65535)
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.tif", channels=1), 255 - expected if white_is_zero else expected
    )


def test_12_bit_tiff_uses_its_own_full_scale(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_bytes(2, 1, 12, 1, bytes([0x80, 0x0F, 0xFF])))
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.tif", channels=1), to_8_bits(np.array([[0x800, 0xFFF]]), 4095)
    )


def test_8_bit_tiff_with_white_as_zero(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_bytes(3, 1, 8, 0, bytes([0, 100, 255])))
    assert load_image(tmp_path / "a.tif", channels=1).ravel().tolist() == [255, 155, 0]


def test_16_bit_png_with_a_transparent_value_and_with_alpha(tmp_path):
    row = np.array([0x1234, 0xFFFF, 0x0000], ">u2").tobytes()
    key = png_chunk(b"tRNS", struct.pack(">H", 0x1234))
    (tmp_path / "key.png").write_bytes(png_bytes(3, 1, 16, 0, [row], key))
    assert load_image(tmp_path / "key.png", channels=1).ravel().tolist() == [255, 255, 0]
    row = np.array([0x4000, 0x8080, 0x4000, 0x0000], ">u2").tobytes()
    (tmp_path / "alpha.png").write_bytes(png_bytes(2, 1, 16, 4, [row]))
    half_over_white = round(0x40 * 0x80 / 255 + 255 - 0x80)
    assert load_image(tmp_path / "alpha.png", channels=1).ravel().tolist() == [half_over_white, 255]


def test_16_bit_rgb_takes_the_high_byte(tmp_path):
    rgb = np.random.default_rng(2).integers(0, 65536, (1, 9, 3)).astype(">u2")
    (tmp_path / "a.png").write_bytes(png_bytes(9, 1, 16, 2, [rgb.tobytes()]))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), rgb >> 8)


def test_32_bit_integers_are_taken_as_16_bit_or_refused(tmp_path):
    values = np.array([[0, 1000, 65535]], np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif", channels=1), to_8_bits(values, 65535))
    for wrong in (65536, -1):
        Image.fromarray(np.array([[0, wrong]], np.int32)).save(tmp_path / "b.tif")
        with pytest.raises(UnreadableImageError, match=r"32-bit integer values: .*expected 0\.\.\.65535"):
            load_image(tmp_path / "b.tif")


def test_floating_point_is_zero_to_one_or_refused(tmp_path):
    values = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif", channels=1).ravel().tolist() == [0, 64, 128, 255]
    for wrong in (1.5, -0.1, float("nan"), float("inf")):
        Image.fromarray(np.array([[0.0, wrong]], np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(UnreadableImageError, match=r"floating-point values: .*expected 0\.\.\.1"):
            load_image(tmp_path / "b.tif")


# --- orientation, frames ---

SIDES = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}
"""EXIF 2.32: which side of the upright picture the stored row 0 and column 0 are."""


def stored_as(orientation: int, upright: np.ndarray) -> np.ndarray:
    """The rows and columns of `upright` in the order in which a camera with this orientation stores them."""
    row_side, column_side = SIDES[orientation]
    stored = upright if row_side in "tb" else upright.swapaxes(0, 1)
    stored = stored[::-1] if row_side in "br" else stored
    return stored[:, ::-1] if column_side in "br" else stored


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_exif_orientation(tmp_path, orientation, suffix):
    upright = np.zeros((16, 48, 3), np.uint8)
    upright[:8, :16], upright[8:, :16], upright[:8, 16:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(stored_as(orientation, upright))
    options = EVERY_FORMAT[suffix] | ({"subsampling": 0} if suffix == "jpg" else {})
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    got = load_image(tmp_path / f"a.{suffix}")
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).max() <= (4 if suffix == "jpg" else 0)


def test_16_bit_is_turned_too(tmp_path):
    values = np.arange(0, 60000, 5000, dtype=np.uint16).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(stored_as(6, values))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", channels=1), to_8_bits(values, 65535))


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path):
    pixels = noise(4, 5, 3)
    for suffix in ("png", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=b"neither TIFF nor EXIF", **LOSSLESS[suffix])
        np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), pixels)
    rgb = np.full((8, 8, 3), 90, np.uint8)
    for number, block in enumerate(
        [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"]
    ):
        Image.fromarray(rgb).save(tmp_path / f"{number}.jpg", exif=block)
        assert np.abs(load_image(tmp_path / f"{number}.jpg").astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif"])
def test_the_first_of_several_frames(tmp_path, suffix):
    first, second = noise(6, 9, 3), noise(6, 9, 3)[::-1]
    frames = [Image.fromarray(np.ascontiguousarray(second))]
    options = LOSSLESS.get(suffix, {})
    Image.fromarray(first).save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames, **options)
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), first)


def test_the_first_picture_of_a_multi_picture_jpeg(tmp_path):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ((180, 40, 40), (0, 0, 0)))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - (180, 40, 40)).max() <= 3


def test_the_content_decides_not_the_name(tmp_path):
    rgb = noise(5, 5, 3)
    Image.fromarray(rgb).save(tmp_path / "really_a_png.jpg", "PNG")
    np.testing.assert_array_equal(load_image(tmp_path / "really_a_png.jpg"), rgb)


# --- harm ---


@pytest.mark.parametrize("suffix", EVERY_FORMAT)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.5, 0.9])
def test_truncated(tmp_path, suffix, kept):
    Image.fromarray(noise(60, 60, 3)).save(tmp_path / f"a.{suffix}", **EVERY_FORMAT[suffix])
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UnreadableImageError, match="cannot be decoded") as error:
        load_image(tmp_path / f"b.{suffix}")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif(tmp_path):
    upright = np.zeros((16, 48, 3), np.uint8)
    upright[:8, :16], upright[8:, :16], upright[:8, 16:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(stored_as(6, upright)))
    stored.save(tmp_path / "a.avif", exif=exif, quality=100, subsampling="4:4:4")
    assert np.abs(load_image(tmp_path / "a.avif").astype(int) - upright).max() <= 4


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC needs a plugin: pip install pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC needs a plugin: pip install pillow-heif"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL needs a plugin: pip install pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL needs a plugin: pip install pillow-jxl-plugin"),
    ],
)
def test_a_kind_that_needs_a_plugin_is_named(tmp_path, monkeypatch, head, message):
    for plugin in ("pillow_heif", "pillow_jxl", "pillow_jxl.JpegXLImagePlugin"):  # another test may have imported it
        monkeypatch.setitem(sys.modules, plugin, None)
    (tmp_path / "a.jpg").write_bytes(head + bytes(60))
    with pytest.raises(UnreadableImageError, match=rf"a\.jpg: {message}"):
        load_image(tmp_path / "a.jpg")


def test_plugins_are_used(tmp_path):
    """They are no dependency of smalti; where they are installed, their files are read."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    pytest.importorskip("pillow_jxl")
    rgb = np.zeros((16, 16, 3), np.uint8) + np.array([200, 90, 20], np.uint8)
    for name in ("a.heic", "a.jxl"):
        Image.fromarray(rgb).save(tmp_path / name, quality=95)
        assert np.abs(load_image(tmp_path / name).astype(int) - rgb).max() <= 4


def test_empty_text_and_foreign_files_say_what_they_are(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "film.png").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(40))
    with pytest.raises(UnreadableImageError, match=r"empty\.png: the file is empty"):
        load_image(tmp_path / "empty.png")
    for name in ("text.png", "film.png"):
        with pytest.raises(UnreadableImageError, match=f"{name}: content is none of PNG, JPEG, WebP, BMP, TIFF"):
            load_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "absent.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_bytes_give_a_picture_or_the_one_error(tmp_path, suffix, data):
    whole = tmp_path / f"whole.{suffix}"
    if not whole.exists():
        exif = Image.Exif()
        exif[0x0112] = 6
        keep_exif = {} if suffix == "bmp" else {"exif": exif}
        Image.fromarray(noise(12, 10, 3)).save(whole, **EVERY_FORMAT[suffix], **keep_exif)
    altered = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / f"altered.{suffix}").write_bytes(altered)
    reason = ""
    try:
        got = load_image(tmp_path / f"altered.{suffix}", max_pixels=100_000)
    except UnreadableImageError as error:
        reason = str(error)
    assert "\n" not in reason
    assert reason or (got.dtype == np.uint8 and got.shape[2] == 3)


# --- the pixel limit ---


def test_a_huge_picture_is_refused_by_its_header_and_read_when_the_limit_is_raised(tmp_path):
    rgb = noise(30, 40, 3)
    for suffix, options in LOSSLESS.items():
        Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", **options)
        with pytest.raises(
            UnreadableImageError, match=r"40 x 30 = 1200 pixels, more than max_pixels = 1199; raise max_p"
        ):
            load_image(tmp_path / f"a.{suffix}", max_pixels=1199)
        np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}", max_pixels=1200), rgb)


def test_a_bomb_costs_nothing(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_bytes(60000, 60000, 8, 2, []))
    with pytest.raises(UnreadableImageError, match="60000 x 60000 = 3600000000 pixels"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", EVERY_FORMAT)
def test_pillows_own_limit_neither_warns_nor_stops_nor_changes(tmp_path, monkeypatch, suffix):
    rgb = noise(30, 40, 3)
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", **EVERY_FORMAT[suffix])
    for limit in (1000, 100):  # Image.open would warn at the first and refuse at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        got = load_image(tmp_path / f"a.{suffix}")
        assert got.shape == rgb.shape
        assert limit == Image.MAX_IMAGE_PIXELS
        with pytest.raises(UnreadableImageError):
            load_image(tmp_path / f"a.{suffix}", max_pixels=1199)
        assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.undo()
    np.testing.assert_array_equal(got, load_image(tmp_path / f"a.{suffix}"))


def test_bad_arguments(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="channels: got 2, expected 1"):
        load_image(tmp_path / "a.png", channels=2)
    with pytest.raises(ValueError, match="max_pixels: got 0, expected at least 1"):
        load_image(tmp_path / "a.png", max_pixels=0)


# --- JPEG files decoded smaller ---


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_may_be_decoded_smaller_but_not_below_what_is_enough(tmp_path, mode):
    smooth = Image.fromarray(noise(12, 20, 3)).resize((600, 360)).convert(mode)
    smooth.save(tmp_path / "a.jpg", quality=95)
    whole = load_picture(tmp_path / "a.jpg")
    for enough, factor in ((361, 1), (181, 1), (180, 2), (100, 2), (90, 4), (1, 8)):
        small = load_picture(tmp_path / "a.jpg", enough=enough)
        size = (600 // factor, 360 // factor)
        assert (small.mode, small.size) == ("RGB", size)
        averaged = np.asarray(whole.resize(size, Image.Resampling.BOX)).astype(int)
        assert np.abs(averaged - np.asarray(small)).mean() < 2.5


def test_other_files_and_turned_ones_keep_to_what_is_enough(tmp_path):
    picture = Image.fromarray(noise(80, 48, 3))
    picture.save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png", enough=4).size == (48, 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert load_picture(tmp_path / "a.jpg", enough=24).size == (40, 24)
    with pytest.raises(UnreadableImageError, match="3840 pixels, more than max_pixels = 3000"):
        load_picture(tmp_path / "a.jpg", max_pixels=3000, enough=4)  # counted before it is made smaller
