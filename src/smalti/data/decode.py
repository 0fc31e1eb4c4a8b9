"""Decodes picture files to upright pixels, uint8 (H, W, C). Colour conversion is in `colour.py`.

The format is detected by the first bytes, not by the file name, and only `FORMATS` are passed to a decoder. Of several
frames or pages, the first is taken. The EXIF orientation is applied; a damaged EXIF block is ignored. Pillow's decoders
are constructed directly, because `Image.open` refuses or warns above a process-wide limit; smalti has the argument
`max_pixels` instead. HEIC and JPEG XL need a plugin.

Any error while decoding a file becomes an `UnreadableImageError`.
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
from jaxtyping import UInt8
from PIL import Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from smalti.checks import at_least
from smalti.data.colour import grey_or_rgb, key_out
from smalti.data.source import UnreadableImageError, to_array

DEFAULT_MAX_PIXELS = 100_000_000
"""Default limit of width x height: 300 MB as RGB."""

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".jxl", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
FORMATS = "PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF, HEIC, JPEG XL"

DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error, zlib.error,
    RuntimeError, AttributeError, AssertionError, MemoryError,
)  # fmt: skip
"""Exceptions of Pillow's decoders and conversions for damaged data and unsupported pixel formats
(DecompressionBombError is separate)."""

DECODERS = {
    "PNG": PngImageFile, "JPEG": JpegImageFile, "WebP": WebPImageFile, "BMP": BmpImageFile, "TIFF": TiffImageFile,
    "GIF": GifImageFile, "AVIF": AvifImageFile,
}  # fmt: skip

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
"""Bytes per read of a picture file: most files need one read."""

ONE_AT_A_TIME = Lock()
"""Held while Pillow's global limit is lifted, so that threads restore it correctly."""

HEAD = 64
"""Number of bytes needed to detect the format."""
BMFF_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC"}
"""Brands of ISO base media files and their formats."""


def load_image(
    path: str | Path, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS
) -> UInt8[np.ndarray, "h w {channels}"]:
    """Read one picture file as uint8 (H, W, channels), upright, converted by the rules in `colour.py`.

    Args:
        path: a file of one of `FORMATS`, with any name.
        channels: 3 for RGB, 1 for grey.
        max_pixels: refuse a picture with more pixels before decoding it.

    Raises:
        UnreadableImageError: another format, damaged, unknown value range, or more than `max_pixels`.
        OSError: the file cannot be opened (FileNotFoundError if it does not exist).
        ValueError: `channels` is neither 1 nor 3, or `max_pixels` is below 1.
    """
    return to_array(load_picture(path, channels, max_pixels))


def load_picture(
    path: str | Path, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS, enough: int | None = None
) -> Image.Image:
    """`load_image`, as a Pillow image of mode RGB or L.

    With `enough`, JPEG files may be decoded 2, 4 or 8 times smaller, which is up to ten times faster. No side becomes
    shorter than `enough` pixels.
    """
    check_decoding(channels, max_pixels)
    try:
        with BufferedReader(Path(path).open("rb", buffering=0), READ_AT_ONCE) as file:
            return _read(file, str(path), channels, max_pixels, enough)
    except IsADirectoryError as error:
        what = "is a folder, expected an image file; smalti tokenize takes folders"
        raise IsADirectoryError(error.errno, what, str(path)) from error


def decode_picture(
    data: bytes, name: str, channels: int = 3, max_pixels: int = DEFAULT_MAX_PIXELS, enough: int | None = None
) -> Image.Image:
    """`load_picture` for the bytes of a picture file; `name` identifies it in errors."""
    check_decoding(channels, max_pixels)
    return _read(BytesIO(data), name, channels, max_pixels, enough)


def check_decoding(channels: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """ValueError unless `channels` is 1 (grey) or 3 (RGB) and `max_pixels` at least 1."""
    if channels not in (1, 3):
        raise ValueError(f"channels: got {channels}, expected 1 (grey) or 3 (RGB)")
    at_least(1, max_pixels=max_pixels)


def _read(file: BufferedIOBase, name: str, channels: int, max_pixels: int, enough: int | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns about damaged metadata of pictures that it still decodes; users cannot act on it.
            warnings.simplefilter("ignore")
            with _pillow_allows(max_pixels):
                image = _decode(file, name, max_pixels, enough)
            return grey_or_rgb(image, name, channels)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(name, f"refused by Pillow: {error}") from error
    except DAMAGE as error:
        raise UnreadableImageError(name, f"cannot be decoded ({_one_line(error)})") from error


@contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
    """Raise Pillow's global limit for one picture if it is lower: its TIFF and WebP decoders apply it themselves."""
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
    kind = _kind(file.read(HEAD), name)
    decoder = _decoder(kind, name)
    file.seek(0)
    image = decoder(file)
    width, height = image.size
    if width * height > max_pixels:
        pixels = f"{width} x {height} = {width * height} pixels"
        raise UnreadableImageError(name, f"{pixels}, more than max_pixels = {max_pixels}; raise max_pixels to read it")
    if enough is not None and isinstance(image, JpegImageFile):
        image.draft(None, (enough, enough))
    if isinstance(image, PngImageFile) and image.mode != "P" and "transparency" in image.info:
        return _upright(key_out(image, file))
    image.load()
    return image if kind in ("HEIC", "JPEG XL") else _upright(image)  # their decoders apply the orientation


def _kind(head: bytes, name: str) -> str:
    """The format, one of `FORMATS`, of a file that begins with `head`."""
    if not head:
        raise UnreadableImageError(name, "the file is empty")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith(b"BM"):
        return "BMP"
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")):
        return "JPEG XL"
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        for start in range(0, len(brands), 4):
            if brands[start : start + 4] in BMFF_BRANDS:
                return BMFF_BRANDS[brands[start : start + 4]]
    raise UnreadableImageError(name, f"content is none of {FORMATS}")


def _decoder(kind: str, name: str) -> Callable[..., ImageFile]:
    """The decoder of a format: one of Pillow's own, or that of a plugin."""
    try:
        if kind == "HEIC":
            from pillow_heif import HeifImageFile

            return HeifImageFile
        if kind == "JPEG XL":
            from pillow_jxl.JpegXLImagePlugin import JXLImageFile

            return JXLImageFile
    except ImportError as error:
        package = {"HEIC": "pillow-heif", "JPEG XL": "pillow-jxl-plugin"}[kind]
        raise UnreadableImageError(name, f"{kind} needs a plugin: pip install {package}") from error
    if kind == "AVIF" and not features.check("avif"):
        raise UnreadableImageError(name, "this Pillow was built without AVIF")
    return DECODERS[kind]


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. (Pillow's decoder has already turned TIFF files and removed their tag.)"""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGE:
        return image
    operation = UPRIGHT.get(orientation)
    return image if operation is None else image.transpose(operation)


def _one_line(error: BaseException) -> str:
    """The decoder's message, shortened to one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
