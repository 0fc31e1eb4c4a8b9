"""Encoder and decoder as graphs of `torch.export`, for images of any size and batches of any length.

A graph runs without this package. Code search is a matrix product and an arg-min in fp32: if two codes have distances
that agree to seven digits, either may be chosen. Values are not checked.

The scales of a multi-scale tokenizer grow with the image. A graph rounds them in integer arithmetic, and a scale of one
cell stays at one cell. `sides` finds the sizes at which these scales equal the tokenizer's; the program refuses other
sizes.

Legend: B images, C channels, H x W the latent, h x w a scale.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.export import Dim, ExportedProgram, export

from smalti.ops import proportional_grids
from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import TiTok, Tokenizer, Tokens

EXAMPLE_CELLS = 8
"""Side of the example's latent for a tokenizer with one scale."""
REMARKING = ("torch.onnx._internal.exporter._registration", "onnxscript")
"""Loggers whose remarks are of no use to users."""
MOST_TIMES = 8
"""Largest side of a multi-scale tokenizer's images, in multiples of the training size."""


class Encoding(nn.Module):
    """Images (B, C, H, W) from -1 to 1 → the indices of each scale."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `Tokenizer.encode`."""
        quantizer = self.tokenizer.quantizer
        if not isinstance(quantizer, MultiScaleQuantizer):
            return self.tokenizer.encode(image).indices
        z = self.tokenizer._latent(image)
        rows, columns = (sides_in_graph(quantizer.patch_nums, z.shape[axis]) for axis in (2, 3))
        return tuple(quantizer.encode(z, tuple(zip(rows, columns, strict=True))))


class Decoding(nn.Module):
    """The indices of each scale → images (B, C, h * stride, w * stride) from -1 to 1."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, *indices: Tensor) -> Tensor:
        """See `Tokenizer.decode`."""
        side, last = self.tokenizer.stride, indices[-1]
        whole = isinstance(self.tokenizer, TiTok)  # its tokens describe the whole image
        size = (side, side) if whole else (last.shape[1] * side, last.shape[2] * side)
        return self.tokenizer.decode(Tokens(indices, size, self.tokenizer.vocab_size))


@dataclass(frozen=True)
class Graphs:
    """Encoder and decoder of a tokenizer as graphs."""

    encoder: ExportedProgram
    """From "image" to the indices."""
    decoder: ExportedProgram
    """From the indices to "image"."""
    names: tuple[str, ...]
    """Names of the indices: "indices", or "indices_0" … from coarse to fine."""
    axes: dict[str, dict[int, str]]
    """Axes of variable length, for "image" and for each name of indices."""
    config: dict[str, Any]
    """Names, shapes and ranges of inputs and outputs, in plain JSON types."""

    def notes(self) -> list[str]:
        """Notes for users of the graphs."""
        low, high = self.config["height"]
        sizes = f"{low} to {high}" if high else f"{low} or more"
        return [
            "encoder: image, float32 from -1 to 1, to int64 indices; decoder: indices to image. Any batch size.",
            f"Height and width of the image: {sizes} pixels; others give wrong tokens or an error.",
            f"The decoder's image is padded to multiples of {self.config['stride']}: crop it.",
        ]


@contextmanager
def without_remarks() -> Iterator[None]:
    """Silences messages of torch's exporters that users cannot act on: deprecations inside torch, missing torchvision,
    steps of the optimizer."""
    levels = {name: logging.getLogger(name).level for name in REMARKING}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@torch.no_grad()
@without_remarks()
def graphs_of(tokenizer: Tokenizer) -> Graphs:
    """Export encoder and decoder.

    Raises:
        ValueError: the tokenizer has no decoder.
    """
    tokenizer = tokenizer.cpu().eval()
    low, high, example = sides(tokenizer)
    image = torch.zeros(2, tokenizer.image_channels, example * tokenizer.stride, example * tokenizer.stride)
    indices = tokenizer.encode(image).indices
    Decoding(tokenizer)(*indices)  # refuses a tokenizer without a decoder
    single = len(indices) == 1
    names = ("indices",) if single else tuple(f"indices_{k}" for k in range(len(indices)))
    any_size = {} if isinstance(tokenizer, TiTok) else {2: "height", 3: "width"}
    axes = {"image": {0: "batch", **any_size}}
    for k, (name, scale) in enumerate(zip(names, indices, strict=True)):
        side_names = ("rows", "columns") if single else (f"rows_{k}", f"columns_{k}")
        free = {axis: side for axis, side in zip((1, 2), side_names, strict=True) if any_size and scale.shape[axis] > 1}
        axes[name] = {0: "batch", **free}
    pixels = {0: Dim.AUTO} | dict.fromkeys(any_size, Dim.AUTO(min=low, max=high))
    cells = tuple(dict.fromkeys(axes[name], Dim.AUTO) for name in names)
    encoder = export(Encoding(tokenizer), (image,), dynamic_shapes={"image": pixels})
    decoder = export(Decoding(tokenizer), tuple(indices), dynamic_shapes={"indices": cells})
    own = get_decompositions([torch.ops.smalti.nearest_code.default])
    own[torch.ops.aten.adaptive_avg_pool2d.default] = area_interpolation

    def shape(name: str, tensor: Tensor) -> list[int | str]:
        return [axes[name].get(axis, length) for axis, length in enumerate(tensor.shape)]

    config = {
        "image": {"shape": shape("image", image), "dtype": "float32", "range": [-1, 1]},
        "height": [low, high],
        "width": [low, high],
        "stride": tokenizer.stride,
        "indices": [
            {"name": name, "shape": shape(name, scale), "dtype": "int64", "range": [0, tokenizer.vocab_size - 1]}
            for name, scale in zip(names, indices, strict=True)
        ],
        "fingerprint": tokenizer.fingerprint,
    }
    return Graphs(encoder.run_decompositions(own), decoder, names, axes, config)


def sides(tokenizer: Tokenizer) -> tuple[int, int | None, int]:
    """Smallest and largest side in pixels that a graph takes (None: no limit), and the example's side in cells."""
    if isinstance(tokenizer, TiTok):
        return tokenizer.stride, tokenizer.stride, 1
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, MultiScaleQuantizer):
        return tokenizer.stride + 1, None, EXAMPLE_CELLS
    patch_nums, trained = quantizer.patch_nums, quantizer.patch_nums[-1]

    def fits(side: int) -> bool:
        """Whether the graph has the tokenizer's scales, and one-cell scales only where the training size has them."""
        found = [grid[0] for grid in proportional_grids(patch_nums, side, side)]
        return sides_in_graph(patch_nums, side) == found and found.count(1) == patch_nums.count(1)

    low, high = trained, trained
    while low > 1 and fits(low - 1):
        low -= 1
    while high < MOST_TIMES * trained and fits(high + 1):
        high += 1
    return (low - 1) * tokenizer.stride + 1, high * tokenizer.stride, trained


def sides_in_graph(patch_nums: Sequence[int], side: int) -> list[int]:
    """The sides of all scales of a latent with this side; a graph can compute them from a symbolic side."""
    last = patch_nums[-1]

    def rounded(each: int) -> int:
        """each * side / last, rounded; halves go to the even integer."""
        odd = each * side // last % 2
        return (2 * each * side + last - 1 + odd) // (2 * last)

    return [1 if each == 1 else rounded(each) for each in patch_nums[:-1]] + [side]


def area_interpolation(f_BCHW: Tensor, grid: Sequence[int]) -> Tensor:
    """Means (B, C, h, w) over the cells of a grid, as two matrix products: ONNX has no pooling to a variable size."""
    rows_hH, columns_wW = (area_weights(cells, f_BCHW.shape[axis]) for axis, cells in zip((2, 3), grid, strict=True))
    return rows_hH @ f_BCHW @ columns_wW.T


def area_weights(cells: int, length: int) -> Tensor:
    """Matrix (cells, length): row i has 1 / n at the n positions of cell i."""
    cell_C1, place_L = torch.arange(cells)[:, None], torch.arange(length)
    first_C1 = cell_C1 * length // cells
    end_C1 = (cell_C1 * length + length + cells - 1) // cells
    covered_CL = (place_L >= first_C1) & (place_L < end_C1)
    return covered_CL.float() / (end_C1 - first_C1).float()
