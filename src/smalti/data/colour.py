"""Converts decoded pictures of any pixel format to grey or sRGB, 8 bits per channel, by fixed rules.

pixel format                            becomes
grey, 1-bit                             0...255; expanded to three equal channels, or kept for channels=1
palette, RGB, YCbCr, CIELAB             RGB
CMYK                                    RGB by (255 - ink)(255 - black) / 255
an embedded colour profile              to sRGB, relative colorimetric with black point compensation; pixels stay
                                        as they are if it is sRGB, damaged, or of another kind than the pixels
alpha, transparent palette entry,
transparent colour key                  composited over white
16-bit grey                             value / 257, rounded (12-bit TIFF: value / 4095 * 255)
16-bit RGB                              the high byte (Pillow's reduction)
32-bit integer grey                     as 16-bit if all values lie in 0...65535, else refused
floating-point grey                     value * 255, rounded, if all values lie in 0...1, else refused
channels=1 from colour                  luma of ITU-R BT.601: (299 R + 587 G + 114 B) / 1000
"""

from functools import lru_cache
from io import BufferedIOBase, BytesIO
from typing import IO, cast

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from smalti.data.source import UnreadableImageError

TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 258, 262, 0

PROFILE_KINDS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Mode of an image -> the colour space of a profile that can belong to it."""
AS_SRGB = 2
"""A profile counts as sRGB if it changes no channel by more than this: sRGB profiles differ by rounding."""

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def grey_or_rgb(image: Image.Image, name: str, channels: int) -> Image.Image:
    """Convert any Pillow mode to L or RGB; `name` identifies the picture in errors."""
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_deep_grey(image, name))
    if image.has_transparency_data:
        image = image.convert(PREMULTIPLIED.get(image.mode, image.mode))
        opaque = _to_srgb(image.convert("L" if image.mode == "LA" else "RGB"), profile)
        alpha = image.convert("RGBA").getchannel("A")
        image = Image.fromarray(_over_white(np.asarray(opaque.convert("RGB")), np.asarray(alpha)))
    else:
        image = image if image.mode in PROFILE_KINDS else image.convert("L" if image.mode == "1" else "RGB")
        image = _to_srgb(image, profile)
        image = image.convert("RGB") if image.mode == "CMYK" else image
    wanted = "RGB" if channels == 3 else "L"
    return image if image.mode == wanted else image.convert(wanted)


def _over_white(rgb: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """(colour * alpha + 255 * (255 - alpha)) / 255, rounded; it fits 16 bits."""
    weight = alpha[:, :, None].astype(np.uint16)
    return ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


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
        raise UnreadableImageError(name, f"{kind} values: got {low}...{high}, expected 0...{full_scale:g}")
    grey = np.rint(values.astype(np.float32) * np.float32(255.0 / full_scale)).astype(np.uint8)
    return 255 - grey if tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO else grey


# ---- the colour key of a PNG ----------------------------------------------------------------------------------------


def key_out(image: PngImageFile, file: BufferedIOBase) -> Image.Image:
    """Decode a PNG with a colour key (tRNS), and set alpha to 0 for pixels of that colour.

    Args:
        image: opened from `file`, not yet decoded.
        file: read again if Pillow keeps only 8 of 16 bits, because the key has 16.
    """
    key, raw = np.asarray(image.info.pop("transparency")), str(image.tile[0].args)
    image.load()
    if raw == "RGB;16B":
        file.seek(0)
        low = PngImageFile(cast(IO[bytes], file))
        low.tile = [low.tile[0]._replace(args="RGB;16L")]  # takes the second byte of each pair, here the low one
        equal = (np.asarray(image) == key >> 8) & (np.asarray(low) == (key & 255))
    elif image.mode == "RGB":
        equal = np.asarray(image) == (key & 255)
    else:
        depth = {"1": 1, "L;2": 2, "L;4": 4, "L": 8}.get(raw, 16)
        steps = {2: 85, 4: 17}.get(depth, 1)  # Pillow spreads the levels over 0...255
        equal = np.asarray(image) == (key & (2**depth - 1)) * steps
    return _with_hole(image, equal.all(axis=2) if equal.ndim == 3 else equal)


def _with_hole(image: Image.Image, hole: Bool[np.ndarray, "h w"]) -> Image.Image:
    """The image with alpha 0 in the hole. 16-bit grey has no alpha: the hole becomes white."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.where(hole, 65535, np.asarray(image)).astype(np.uint16))
    kept = image.convert("RGBA" if image.mode == "RGB" else "LA")
    kept.putalpha(Image.fromarray(np.where(hole, np.uint8(0), np.uint8(255))))
    return kept


# ---- colour profiles -----------------------------------------------------------------------------------------------


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode L, RGB or CMYK to sRGB; unchanged if the profile is unusable."""
    transform = None if profile is None else _transform(profile, image.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "not done in place"
    return converted.convert("L") if image.mode == "L" else converted


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Transform from a profile to sRGB; None if the profile is sRGB, damaged, or for another colour space."""
    try:
        opened = ImageCms.getOpenProfile(BytesIO(profile))
        if opened.profile.xcolor_space.strip() != PROFILE_KINDS[mode]:
            return None
        srgb = ImageCms.createProfile("sRGB")
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(opened, srgb, mode, "RGB", intent, flags)
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether all greys, or colours in steps of 15, stay unchanged."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    probe = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    moved = ImageCms.applyTransform(probe, transform)
    assert moved is not None, "not done in place"
    return int(np.abs(np.asarray(moved, np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max()) <= AS_SRGB
