"""From the bytes of a picture file to uint8 (H, W, C): every kind of pixel becomes grey or sRGB in one stated way.

    kind                                    becomes
    grey, 1-bit                             0...255; expanded to three equal channels, or kept for channels=1
    palette, RGB, YCbCr, CIELAB             RGB
    CMYK                                    RGB by (255 - ink)(255 - black) / 255; embedded colour profiles are ignored
    alpha, transparent palette entry,
    transparent colour key                  composited over white
    16-bit grey                             value / 257, rounded (12-bit TIFF: value / 4095 * 255)
    16-bit RGB                              the high byte (Pillow's reduction)
    32-bit integer grey                     as 16-bit if all values lie in 0...65535, else refused
    floating-point grey                     value * 255, rounded, if all values lie in 0...1, else refused
    several frames or pages                 the first
    EXIF orientation                        applied; an EXIF block that is damaged is ignored
    channels=1 from colour                  luma of ITU-R BT.601: (299 R + 587 G + 114 B) / 1000

The kind of file is told by its first bytes, not by its name, and only the five kinds of `FORMATS` are ever handed to a
decoder. Pillow's own decoders do the work; they are constructed directly because `Image.open` refuses or warns above a
limit that is a global of the process, where smalti has the argument `max_pixels`.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader, BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from smalti.data.source import UnreadableImageError, to_array

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "check_decoding",
    "decode_picture",
    "load_image",
    "load_picture",
]

DEFAULT_MAX_PIXELS = 100_000_000
"""Largest width x height decoded unless the caller raises it: 300 MB as RGB."""

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = "PNG, JPEG, WebP, BMP, TIFF"

DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on bytes that are not what their header says (DecompressionBombError is separate)."""

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that undoes it."""

READ_AT_ONCE = 2**18
"""Bytes a read of a picture file: most files come at once."""

ONE_AT_A_TIME = Lock()
"""Held while Pillow's global limit is lifted, so that threads put it back in order."""

TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 258, 262, 0


def load_image(
    path: str | Path, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS
) -> UInt8[np.ndarray, "h w {channels}"]:
    """Read one picture file as uint8 (H, W, channels), upright, in the way the table above states.

    Args:
        path: a PNG, JPEG, WebP, BMP or TIFF file, whatever its name.
        channels: 3 for RGB, 1 for grey.
        max_pixels: refuse a picture of more pixels than this before decoding it.

    Raises:
        UnreadableImageError: not a picture of these kinds, damaged, of an undeclared value range, or over `max_pixels`.
        OSError: the file cannot be opened (FileNotFoundError if it does not exist).
        ValueError: `channels` is neither 1 nor 3, or `max_pixels` is below 1.
    """
    return to_array(load_picture(path, channels, max_pixels))


def load_picture(
    path: str | Path, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS, enough: int | None = None
) -> Image.Image:
    """`load_image` as Pillow's image of mode RGB or L.

    A JPEG decoder can leave out detail on the way, which is up to ten times faster: with `enough`, sides may come out
    2, 4 or 8 times shorter, but not below `enough` pixels.
    """
    check_decoding(channels, max_pixels)
    with BufferedReader(Path(path).open("rb", buffering=0), READ_AT_ONCE) as file:
        return _read(file, str(path), channels, max_pixels, enough)


def decode_picture(
    data: bytes, name: str, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS, enough: int | None = None
) -> Image.Image:
    """`load_picture` for the bytes of a picture file, which errors call `name`."""
    check_decoding(channels, max_pixels)
    return _read(BytesIO(data), name, channels, max_pixels, enough)


def check_decoding(channels: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """ValueError unless `channels` is 1 (grey) or 3 (RGB) and `max_pixels` at least 1."""
    if channels not in (1, 3):
        raise ValueError(f"channels: {channels}, must be 1 (grey) or 3 (RGB)")
    if max_pixels < 1:
        raise ValueError(f"max_pixels: {max_pixels}, must be at least 1")


def _read(file: BufferedIOBase, name: str, channels: int, max_pixels: int, enough: int | None) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns about damaged metadata of pictures that it still decodes; nobody can act on it.
        warnings.simplefilter("ignore")
        with _pillow_allows(max_pixels):
            image = _decode(file, name, max_pixels, enough)
        return _grey_or_rgb(image, name, channels)


@contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
    """Pillow's TIFF and WebP decoders apply its global limit by themselves: if it is lower, lift it for one picture."""
    if Image.MAX_IMAGE_PIXELS is None or pixels <= 2 * Image.MAX_IMAGE_PIXELS:
        yield
        return
    with ONE_AT_A_TIME:
        before = Image.MAX_IMAGE_PIXELS
        try:
            Image.MAX_IMAGE_PIXELS = pixels
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decode(file: BufferedIOBase, name: str, max_pixels: int, enough: int | None) -> Image.Image:
    """The first frame, decoded and turned upright."""
    decoder = _decoder_for(file.read(16), name)
    file.seek(0)
    try:
        image = decoder(file)
        width, height = image.size
        if width * height > max_pixels:
            pixels = f"{width} x {height} = {width * height} pixels"
            raise UnreadableImageError(
                name, f"{pixels}, more than max_pixels = {max_pixels}; raise max_pixels to read it"
            )
        if enough is not None and isinstance(image, JpegImageFile):
            image.draft(None, (enough, enough))
        image.load()
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(name, f"refused by Pillow itself: {error}") from error
    except DAMAGE as error:
        raise UnreadableImageError(name, f"cannot be decoded ({_one_line(error)})") from error
    return _upright(image)


def _decoder_for(head: bytes, name: str) -> Callable[..., ImageFile]:
    """Which of Pillow's decoders reads a file that begins with `head`."""
    if not head:
        raise UnreadableImageError(name, "the file is empty")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImageFile
    if head.startswith(b"BM"):
        return BmpImageFile
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return TiffImageFile
    raise UnreadableImageError(name, f"its content is none of {FORMATS}")


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. (TIFF files have been turned by Pillow's decoder already, and no longer say so.)"""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGE:
        return image
    operation = UPRIGHT.get(orientation)
    return image if operation is None else image.transpose(operation)


def _grey_or_rgb(image: Image.Image, name: str, channels: int) -> Image.Image:
    """Any Pillow mode to L or RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_deep_grey(image, name))
    elif image.has_transparency_data:
        image = Image.fromarray(_over_white(np.asarray(image.convert("RGBA"))))
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    wanted = "RGB" if channels == 3 else "L"
    return image if image.mode == wanted else image.convert(wanted)


def _over_white(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """(colour * alpha + 255 * (255 - alpha)) / 255, rounded; it fits 16 bits."""
    alpha = rgba[:, :, 3:].astype(np.uint16)
    return ((rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _deep_grey(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w"]:
    """16-bit, 32-bit and floating-point grey to 8 bits, by the declared range of each kind."""
    values: Shaped[np.ndarray, "h w"] = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    full_scale = 1.0 if image.mode == "F" else 65535.0
    if tags.get(TIFF_BITS_PER_SAMPLE) == (12,):
        full_scale = 4095.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= full_scale):  # also catches NaN
        kind = "floating-point" if image.mode == "F" else "32-bit integer"
        raise UnreadableImageError(name, f"{kind} values {low}...{high}, expected 0...{full_scale:g}")
    grey = np.rint(values.astype(np.float32) * np.float32(255.0 / full_scale)).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")  # a PNG's colour key, a number here
    return grey if transparent is None else np.where(values == transparent, np.uint8(255), grey)


def _one_line(error: BaseException) -> str:
    """The decoder's own words, shortened to fit into one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
