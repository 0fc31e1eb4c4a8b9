"""The picture of a comparison: a row of originals, below it one labelled row per set of reconstructions."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from smalti.data import GAP, picture_grid
from smalti.ops.pixels import to_float

LARGEST = 256
"""Longest side in pixels; larger pictures are shrunk for this view only."""
LABEL_HEIGHT, LABEL_SIZE = 22, 14
"""Height in pixels of a line of a row's label, and font size."""


def gallery(rows: Sequence[tuple[str, Sequence[UInt8[Tensor, "c _h _w"]]]]) -> UInt8[Tensor, "3 height width"]:
    """One picture of several rows (label, pictures); the k-th pictures of all rows have the same size.

    Pictures (C, H, W), grey or RGB, may differ in size within a row; all cells have the size of the largest picture.
    """
    shrunk = [(label, [_shrunk(picture) for picture in pictures]) for label, pictures in rows]
    sides = [picture.shape[1:] for picture in shrunk[0][1]]
    cell = (max(height for height, _ in sides), max(width for _, width in sides))
    strips = []
    for label, pictures in shrunk:
        row = picture_grid([to_float(torch.stack([_centred(picture, cell) for picture in pictures]))])
        strips += [_label(label, row.shape[2]), row, torch.full((3, GAP, row.shape[2]), 255, dtype=torch.uint8)]
    return torch.cat(strips, dim=1)


def _shrunk(picture: Tensor) -> UInt8[Tensor, "3 h w"]:
    """The picture as RGB, with sides of at most `LARGEST`."""
    picture = picture.cpu().expand(3, -1, -1)
    factor = LARGEST / max(picture.shape[1:])
    if factor >= 1:
        return picture
    height, width = (max(1, round(side * factor)) for side in picture.shape[1:])
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _centred(picture: Tensor, cell: tuple[int, int]) -> Tensor:
    canvas = torch.full((3, *cell), 255, dtype=torch.uint8)
    top, left = ((outer - inner) // 2 for outer, inner in zip(cell, picture.shape[1:], strict=True))
    canvas[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return canvas


def _label(text: str, width: int) -> UInt8[Tensor, "3 height width"]:
    """A strip with the text in Pillow's default font, wrapped at the width."""
    font = ImageFont.load_default(LABEL_SIZE)
    lines = [""]
    for letter in text:
        if lines[-1] and font.getlength(lines[-1] + letter) > width - 4:
            lines.append("")
        lines[-1] += letter
    strip = Image.new("RGB", (width, LABEL_HEIGHT * len(lines)), "white")
    for k, line in enumerate(lines):
        ImageDraw.Draw(strip).text((2, LABEL_HEIGHT * k + 2), line, fill="black", font=font)
    return torch.from_numpy(np.asarray(strip).transpose(2, 0, 1).copy())
