"""Sample images from a trained prior, or edit part of a photograph with it.

OUT/000.png …      the images
OUT/grid.png       all images in one picture
OUT/growth.gif     the images after each scale, or after each level of a residual quantizer

Without a photograph all tokens are sampled. With one, some of its tokens are kept: those outside a box (the prior
samples the inside, of any class: the zero-shot editing of VAR, Tian et al. 2024, section 4.4), or those of the first
scales (the prior samples the details).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from torch import Tensor

from smalti.checks import at_least
from smalti.data import TransformConfig, load_image, picture_grid, save_image
from smalti.evaluation.page import figure, section, table, write_page
from smalti.formats.atomic import check_replaceable, replace_file, replace_folder
from smalti.ops.device import Precision, choose_dtype, find_device
from smalti.ops.pixels import to_float
from smalti.priors import Prior, SamplingConfig, TokenLayout
from smalti.tokenizers import Tokenizer, Tokens
from smalti.zoo import PriorOptions, open_prior, open_tokenizer

TOKENIZER = "tokenizer"
"""Subfolder of a prior's folder: the tokenizer whose tokens it models."""
GRID, GROWTH = "grid.png", "growth.gif"
"""Picture and animation of all samples, in the same folder."""
GROWING = 16
"""Largest number of images in the animation."""
FRAME_MS = 400
LAST_FRAME_MS = 2000


@dataclass(frozen=True)
class SampleConfig(PriorOptions):
    """Sample images from a trained prior."""

    prior: str
    """Prior: a folder from smalti train-prior, a published checkpoint, or a name on the Hugging Face hub."""
    out: Path
    """Folder for the images."""
    label: int | str | None = None
    """Class of the images: a name, or a number such as 2 or "#2" (if a class is named 2, use "#2"); null: all classes
    in equal shares."""
    count: int = 16
    """Number of images."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of tokens."""
    seed: int = 0
    """Random seed; the same seed, count, batch size and number format give the same images."""
    image: str | None = None
    """Photograph to start from, with --scales or --box."""
    scales: int = 0
    """Number of the photograph's scales to keep, coarse to fine; the others are sampled."""
    box: tuple[float, float, float, float] | None = None
    """Sample only inside this box of the photograph: top, left, bottom, right as fractions of its sides."""
    batch_size: int = 16
    """Images sampled together."""
    precision: Precision = "auto"
    """Number format of the prior: "fp32", "bf16", "fp16"; "auto": bf16 if the hardware supports it."""
    report: bool = False
    """Also write OUT/report.html."""
    device: str = "auto"
    """Device to compute on: "cpu", "cuda", ...; "auto": cuda if available."""
    force: bool = False
    """Replace an existing folder."""
    tokenizer: str = ""
    """Tokenizer that the prior was trained on, named as for smalti encode; empty: the one in the prior's folder."""

    def __post_init__(self) -> None:
        at_least(1, count=self.count, batch_size=self.batch_size)
        edits = bool(self.scales) or self.box is not None
        if edits and self.image is None:
            raise ValueError("image: got none, expected a photograph together with scales or box")
        if self.image is not None and not edits:
            raise ValueError("scales, box: got neither, expected one of them together with image")
        if self.scales < 0 or (self.scales and self.box):
            raise ValueError(f"scales: got {self.scales}, expected at least 0, and 0 together with box")


@dataclass(frozen=True)
class SampleResult:
    """The sampled images."""

    out: Path
    """Folder of the images."""
    images: int
    """Number of images."""
    image_size: tuple[int, int]
    """Height and width of the images."""
    classes: tuple[str, ...]
    """Class of each image: its name, or its number if classes have no names; "" for a prior without classes."""
    label: int | None
    """Number of the requested class; None if none was requested."""


def sample(config: SampleConfig, on_images: Callable[[int, int], None] | None = None) -> SampleResult:
    """Sample images and write them.

    Args:
        config: all settings.
        on_images: called with (images sampled, images in all) after every batch.

    Raises:
        FileNotFoundError: no such prior or photograph.
        FileExistsError: the folder exists and `force` is off.
        ValueError: no such class; a box or scales that do not fit the prior's tokens.
    """
    check_replaceable(config.out, config.force, folder=True)
    device = find_device(config.device)
    prior, tokenizer, names = prior_and_tokenizer(config.prior, config.tokenizer, **config.prior_options())
    prior, tokenizer = prior.to(device), tokenizer.to(device)
    prior.cast(choose_dtype(config.precision, device))
    labels_N = _labels(config, prior, names)
    given_1L, keep_L = _kept(config, prior.layout, tokenizer, device)
    generator = torch.Generator(device).manual_seed(config.seed)
    sequences: list[Tensor] = []
    with replace_folder(config.out, config.force) as folder:
        for labels_B in labels_N.to(device).split(config.batch_size):
            batch = labels_B.shape[0]
            given = None if given_1L is None else given_1L.expand(batch, -1)
            keep = None if keep_L is None else keep_L.expand(batch, -1)
            sequences.append(
                prior.sample(labels_B, config.sampling, given_BL=given, keep_BL=keep, generator=generator).cpu()
            )
            if on_images is not None:
                on_images(sum(map(len, sequences)), config.count)
        classes = tuple(names[n] if n < len(names) else str(n) if prior.num_classes else "" for n in labels_N.tolist())
        _write(folder, torch.cat(sequences), prior, tokenizer, classes, config)
    asked = None if config.label is None else int(labels_N[0])
    return SampleResult(config.out, config.count, prior.layout.image_size, classes, asked)


def prior_and_tokenizer(
    name: str | Path, tokenizer: str = "", **options: Any
) -> tuple[Prior, Tokenizer, tuple[str, ...]]:
    """A trained prior, the tokenizer whose tokens it models, and the names of its classes; options as for `open_prior`.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the tokenizer is not the one that the prior was trained on.
    """
    given = open_tokenizer(tokenizer) if tokenizer else None
    prior = open_prior(name, given, **options)
    used, layout = given or open_tokenizer(Path(name) / TOKENIZER), prior.layout
    own = TokenLayout(used.vocab_size, layout.grids, layout.image_size, used.fingerprint)
    layout.require(own, tokenizer or f"{name}/{TOKENIZER}")
    return prior, used, prior.class_names


def to_tokens(sequence_BL: Int64[Tensor, "b l"], layout: TokenLayout) -> Tokens:
    """Sampled sequences (B, L) as tokens that the tokenizer decodes to uint8 images."""
    return Tokens.unflatten(sequence_BL, layout.grids, layout.image_size, layout.vocab_size, torch.uint8)


def _labels(config: SampleConfig, prior: Prior, names: tuple[str, ...]) -> Int64[Tensor, " n"]:
    """The class of each image to sample."""
    label, count = config.label, prior.num_classes
    if label is None:
        return torch.arange(config.count) % count if count else torch.zeros(config.count, dtype=torch.int64)
    number = label if isinstance(label, int) else _number_of(label, names)
    if number is None or not 0 <= number < count:
        known = f"#0 to #{count - 1}" + (f" or one of {', '.join(names[:20])}" if names else "")
        raise ValueError(f"label: got {label!r}, " + (f"expected {known}" if count else "this prior has no classes"))
    return torch.full((config.count,), number)


def _number_of(label: str, names: tuple[str, ...]) -> int | None:
    """The class with this name, in any Unicode normalization; if there is none, the number that `label` spells."""
    if label in names:
        return names.index(label)
    same = [number for number, name in enumerate(names) if normalize("NFC", name) == normalize("NFC", label)]
    spelled = re.fullmatch(r"#?([0-9]{1,9})", label)
    return same[0] if same else int(spelled[1]) if spelled else None


def _kept(
    config: SampleConfig, layout: TokenLayout, tokenizer: Tokenizer, device: torch.device
) -> tuple[Int64[Tensor, "1 l"] | None, Bool[Tensor, " l"] | None]:
    """Tokens of the photograph, and which of them are kept."""
    if config.image is None:
        return None, None
    if config.scales >= len(layout.grids):
        fewer = f"fewer than its {len(layout.grids)}" if len(layout.grids) > 1 else "box, as it has one scale"
        raise ValueError(f"scales: got {config.scales} for this prior, expected {fewer}")
    pixels = TransformConfig(size=layout.image_size).apply(load_image(config.image, tokenizer.image_channels))
    tokens = tokenizer.encode(pixels[None].to(device))
    keep_L = torch.zeros(layout.num_tokens, dtype=torch.bool)
    if config.scales:
        keep_L[: layout.spans[config.scales - 1][1]] = True
    elif config.box is not None:
        keep_L = ~layout.inside(config.box)
    return tokens.flatten(), keep_L.to(device)


# ---- writing --------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, sequences: Tensor, prior: Prior, tokenizer: Tokenizer, classes: tuple[str, ...], config: SampleConfig
) -> None:
    device = next(tokenizer.parameters()).device
    images: list[Tensor] = []
    for part in sequences.split(config.batch_size):
        images += tokenizer.decode(to_tokens(part.to(device), prior.layout)).cpu()
    digits = max(3, len(str(len(images) - 1)))
    for i, image in enumerate(images):
        save_image(folder / f"{i:0{digits}d}.png", image)
    grid = _grid(torch.stack(images))
    save_image(folder / GRID, grid)
    growing = tokenizer.progressive(to_tokens(sequences[:GROWING].to(device), prior.layout))
    if len(growing) > 1:
        _write_gif(folder / GROWTH, [_grid(frame.cpu()) for frame in growing])
    if config.report:
        _write_report(folder / "report.html", images, grid, classes, config)


def _grid(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "c height width"]:
    """Images (N, C, H, W) as one nearly square picture; empty cells at the end are white."""
    columns = math.ceil(math.sqrt(len(images)))
    missing = -len(images) % columns
    white = torch.full((missing, *images.shape[1:]), 255, dtype=torch.uint8)
    return picture_grid(list(to_float(torch.cat([images, white])).split(columns)))


def _write_gif(path: Path, frames: list[UInt8[Tensor, "c h w"]]) -> None:
    pictures = [Image.fromarray(f.permute(1, 2, 0).squeeze(2).numpy()) for f in frames]
    times = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    with replace_file(path) as temporary:
        pictures[0].save(temporary, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)


def _write_report(
    path: Path, images: list[Tensor], grid: Tensor, classes: tuple[str, ...], config: SampleConfig
) -> None:
    drawn = config.sampling
    settings = [
        ("", ""),
        ("prior", config.prior),
        ("guidance", f"{drawn.guidance}"),
        ("temperature", f"{drawn.temperature}"),
        ("top-k", str(drawn.top_k or "all")),
        ("top-p", str(drawn.top_p or "all")),
        ("seed", str(config.seed)),
    ]
    if config.image is not None:
        kept = f"its first {config.scales} scales" if config.scales else f"everything outside {config.box}"
        settings.append(("photograph", f"{config.image}, kept: {kept}"))
    figures = "".join(figure(image, name, 160) for image, name in zip(images, classes, strict=True))
    sections = [
        section("Settings", "设置", table(settings)),
        section("Images", "图像", f'<div class="row">{figures}</div>'),
        section("Overview", "总览", figure(grid, "", min(1000, 2 * grid.shape[2]))),
    ]
    write_page(
        path, "smalti: samples", f"{len(images)} image{'s' * (len(images) != 1)} sampled from {config.prior}.", sections
    )
