"""Writes uint8 pixels to a picture file: the counterpart of `decode.py`."""

from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from smalti.formats.atomic import replace_file

PILLOW_FORMATS = {
    "bmp": "BMP", "jpeg": "JPEG", "jpg": "JPEG", "png": "PNG", "tif": "TIFF", "tiff": "TIFF", "webp": "WEBP",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "TIFF": {"compression": "tiff_deflate"},
    "WEBP": {"lossless": True},
}
"""Options of each format: lossless, except JPEG, which keeps full colour resolution."""


def save_image(
    target: str | Path | BufferedIOBase,
    image: UInt8[Tensor, "c h w"] | UInt8[np.ndarray, "h w c"],
    *,
    format: str | None = None,
    force: bool = False,
) -> None:
    """Write one picture. A path is written atomically: under a temporary name, then renamed.

    Args:
        target: a path, or a binary file open for writing.
        image: uint8, grey (one channel) or RGB (three): a tensor is (C, H, W), a numpy array is (H, W, C).
        format: png, jpeg, webp, bmp or tiff; taken from the path's suffix if not given, png for a file without a name.
        force: replace an existing path.

    Raises:
        ValueError: an unknown suffix or format, another dtype or number of channels, or an empty image.
        FileExistsError: the path exists and `force` is off.
    """
    pixels = image.detach().cpu().numpy().transpose(1, 2, 0) if isinstance(image, Tensor) else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        layout = "tensor (C, H, W)" if isinstance(image, Tensor) else "array (H, W, C)"
        raise ValueError(f"image: got {image.dtype} {tuple(image.shape)}, expected a uint8 {layout} with C = 1 or 3")
    kind = _pillow_format(target, format)
    picture = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    if isinstance(target, str | Path):
        with replace_file(Path(target), force) as temporary:
            picture.save(temporary, kind, **OPTIONS.get(kind, {}))
    else:
        picture.save(cast("BinaryIO", target), kind, **OPTIONS.get(kind, {}))


def _pillow_format(target: str | Path | BufferedIOBase, format: str | None) -> str:
    if format is not None:
        if format.lower() not in PILLOW_FORMATS:
            raise ValueError(f"format: got {format!r}, expected one of {', '.join(PILLOW_FORMATS)}")
        return PILLOW_FORMATS[format.lower()]
    if not isinstance(target, str | Path):
        return "PNG"
    suffix = Path(target).suffix.lower()
    if suffix[1:] not in PILLOW_FORMATS:
        allowed = ", ".join(f".{name}" for name in PILLOW_FORMATS)
        raise ValueError(f"{target}: got suffix {suffix!r}, expected one of {allowed}")
    return PILLOW_FORMATS[suffix[1:]]
