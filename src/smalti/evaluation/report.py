"""An HTML report about a tokenizer: pictures, scales, tokens, curves, numbers. Its parts come from `page.py`."""

import colorsys
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from smalti.evaluation.page import Curve, chart, figure, section, table, write_page


@dataclass(frozen=True)
class Picture:
    """One photograph and its reconstructions; every image is uint8 (C, H, W)."""

    name: str
    """Name of the photograph."""
    original: UInt8[Tensor, "c h w"]
    """The photograph."""
    files: Mapping[str, UInt8[Tensor, "c h w"]]
    """Images decoded from files of about equal size (token file, JPEG, WebP): name and numbers → picture."""
    progressive: Sequence[UInt8[Tensor, "_ _ _"]]
    """The reconstruction after each scale, coarse to fine."""
    maps: Sequence[Int64[Tensor, "_ _"]]
    """The tokens of each scale."""
    caption: str
    """Text with the numbers of this photograph."""


@dataclass(frozen=True)
class Report:
    """The content of the report."""

    title: str
    """Heading of the page."""
    introduction: str
    """One or two sentences."""
    numbers: Mapping[str, str]
    """Name → value, shown as a table."""
    pictures: Sequence[Picture]
    """Photographs."""
    charts: Mapping[str, Sequence[Curve]]
    """Title → curves."""
    tables: Mapping[str, Sequence[Sequence[str]]]
    """Title → rows; the first row is the header."""
    transcript: str
    """Terminal output to show."""
    next_steps: Sequence[str]
    """Commands to try."""


def write_report(path: Path, report: Report, force: bool = False) -> None:
    """Write the page.

    Raises:
        FileExistsError: the file exists and `force` is off.
    """
    sections = [
        section("Numbers", "数值", table([("", ""), *report.numbers.items()])),
        section("Held-out photographs", "未参与训练的照片", "".join(map(_picture, report.pictures))),
        section("Learning curves", "学习曲线", "".join(chart(*item) for item in report.charts.items())),
        *(section(title, "", table(rows)) for title, rows in report.tables.items()),
        section("Two classic demonstrations", "两个经典演示", f"<pre>{html.escape(report.transcript)}</pre>"),
    ]
    if report.next_steps:
        sections.append(section("Next steps", "下一步", f"<pre>{html.escape(chr(10).join(report.next_steps))}</pre>"))
    write_page(path, report.title, report.introduction, sections, force)


def _picture(picture: Picture) -> str:
    files = "".join(figure(image, html.escape(name), 256) for name, image in picture.files.items())
    sides = [f"{scale.shape[0]}×{scale.shape[1]}" for scale in picture.maps]
    steps = "".join(figure(image, side, 96) for image, side in zip(picture.progressive, sides, strict=True))
    maps = "".join(figure(token_colours(m), side, 96) for m, side in zip(picture.maps, sides, strict=True))
    return f"""<h3>{html.escape(picture.name)}</h3><p>{html.escape(picture.caption)}</p>
<div class="row">{figure(picture.original, "original 原图", 256)}{files}</div>
<p>Reconstruction after each scale, coarse to fine <small>逐尺度的重建，由粗到细</small></p>
<div class="row">{steps}</div>
<p>Tokens of each scale, one colour per code <small>各尺度的词元，每个码字一种颜色</small></p>
<div class="row">{maps}</div>"""


def token_colours(indices_hw: Int64[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """A token map (h, w) as a picture (3, h, w): one colour per code, clearly different for adjacent indices."""
    palette = {}
    for code in indices_hw.unique().tolist():
        # Steps of the golden ratio spread the hues evenly for any set of codes.
        hue = code * 0.6180339887 % 1
        palette[code] = [round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.4 + 0.25 * (code % 3) / 2, 0.6)]
    rows = [[palette[code] for code in row] for row in indices_hw.tolist()]
    return torch.tensor(rows, dtype=torch.uint8).permute(2, 0, 1)
