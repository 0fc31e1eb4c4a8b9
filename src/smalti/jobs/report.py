"""One HTML file that shows what a tokenizer does: pictures, scales, tokens, curves, numbers.

It opens offline anywhere: pictures are PNGs inside the file, curves are SVG, and there is no script.
"""

import base64
import colorsys
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from smalti.data import save_image
from smalti.formats.atomic import replace_file

COLOURS = ("#2f6fab", "#c1552d", "#3f8f5b", "#8a5aa8", "#b58a1b", "#4d8f97", "#a8476b", "#6b7a2a")
WIDTH, HEIGHT = 520, 220
"""Size of a chart in SVG units."""


@dataclass(frozen=True)
class Picture:
    """One photograph and what became of it; every image is uint8 (C, H, W)."""

    name: str
    """What to call it."""
    original: UInt8[Tensor, "c h w"]
    """The photograph."""
    reconstruction: UInt8[Tensor, "c h w"]
    """It after encoding and decoding."""
    progressive: Sequence[UInt8[Tensor, "_ _ _"]]
    """What is decoded after each scale, coarse to fine."""
    maps: Sequence[Int64[Tensor, "_ _"]]
    """The tokens of each scale."""
    caption: str
    """Numbers of this photograph, in words."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    """What it is."""
    x: Sequence[float]
    """Steps."""
    y: Sequence[float]
    """Values."""


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    title: str
    """Heading of the page."""
    introduction: str
    """A sentence or two."""
    numbers: Mapping[str, str]
    """Name → value, shown as a table."""
    pictures: Sequence[Picture]
    """Photographs."""
    charts: Mapping[str, Sequence[Curve]]
    """Title → curves."""
    tables: Mapping[str, Sequence[Sequence[str]]]
    """Title → rows, the first is the head."""
    transcript: str
    """Text of a terminal."""
    next_steps: Sequence[str]
    """Commands to try."""


def write_report(path: Path, report: Report, force: bool = False) -> None:
    """Write the page.

    Raises:
        FileExistsError: there is such a file and `force` is off.
    """
    with replace_file(path, force) as temporary:
        temporary.write_text(_page(report), encoding="utf-8")


def _page(report: Report) -> str:
    sections = [
        _section("Numbers", "数值", _table([("", ""), *report.numbers.items()])),
        _section("Photographs it has never seen", "未参与训练的照片", "".join(map(_picture, report.pictures))),
        _section("Learning curves", "学习曲线", "".join(_chart(*item) for item in report.charts.items())),
        *(_section(title, "", _table(rows)) for title, rows in report.tables.items()),
        _section("The two classic demonstrations", "两个经典演示", f"<pre>{html.escape(report.transcript)}</pre>"),
        _section("What next", "下一步", f"<pre>{html.escape(chr(10).join(report.next_steps))}</pre>"),
    ]
    title = html.escape(report.title)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1><p>{html.escape(report.introduction)}</p>{"".join(sections)}</body></html>
"""


def _section(title: str, chinese: str, body: str) -> str:
    translated = f" <small>{html.escape(chinese)}</small>" if chinese else ""
    return f"<h2>{html.escape(title)}{translated}</h2>{body}"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in body)
    return f"<table>{f'<tr>{cells}</tr>' if any(head) else ''}{lines}</table>"


def _picture(picture: Picture) -> str:
    pair = _figure(picture.original, "original 原图", 256) + _figure(picture.reconstruction, "reconstruction 重建", 256)
    sides = [f"{scale.shape[0]}×{scale.shape[1]}" for scale in picture.maps]
    steps = "".join(_figure(image, side, 96) for image, side in zip(picture.progressive, sides, strict=True))
    maps = "".join(_figure(token_colours(m), side, 96) for m, side in zip(picture.maps, sides, strict=True))
    return f"""<h3>{html.escape(picture.name)}</h3><p>{html.escape(picture.caption)}</p><div class="row">{pair}</div>
<p>The picture after each scale, coarse to fine 逐尺度重建</p><div class="row">{steps}</div>
<p>The tokens of each scale, one colour a code 各尺度的词元图</p><div class="row">{maps}</div>"""


def _figure(image: Tensor, caption: str, width: int) -> str:
    buffer = io.BytesIO()
    save_image(buffer, image)
    data = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    return f'<figure><img src="{source}" width="{width}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def token_colours(indices_hw: Int64[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """A token map (h, w) as a picture (3, h, w): each code has its colour, neighbours in the codebook differ."""
    palette = {}
    for code in indices_hw.unique().tolist():
        # Steps of the golden ratio spread hues evenly, whichever codes occur.
        hue = code * 0.6180339887 % 1
        palette[code] = [round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.4 + 0.25 * (code % 3) / 2, 0.6)]
    rows = [[palette[code] for code in row] for row in indices_hw.tolist()]
    return torch.tensor(rows, dtype=torch.uint8).permute(2, 0, 1)


def _chart(title: str, curves: Sequence[Curve]) -> str:
    """Curves in one SVG: axes from the data, a legend beneath."""
    xs = [x for curve in curves for x in curve.x]
    ys = [y for curve in curves for y in curve.y]
    if not xs:
        return ""
    low, high = min(ys), max(ys)
    span_x, span_y = max(xs) - min(xs) or 1, high - low or 1
    lines, legend = [], []
    for curve, colour in zip(curves, COLOURS * (1 + len(curves) // len(COLOURS)), strict=False):
        points = " ".join(
            f"{(x - min(xs)) / span_x * WIDTH:.1f},{HEIGHT - (y - low) / span_y * HEIGHT:.1f}"
            for x, y in zip(curve.x, curve.y, strict=True)
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        legend.append(f'<span style="color:{colour}">■</span> {html.escape(curve.label)}')
    frame = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>'
    labels = (
        f'<text x="-6" y="10" text-anchor="end">{high:.3g}</text>'
        f'<text x="-6" y="{HEIGHT}" text-anchor="end">{low:.3g}</text>'
        f'<text x="0" y="{HEIGHT + 16}">{min(xs):.0f}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">step {max(xs):.0f}</text>'
    )
    view = f'viewBox="-60 -5 {WIDTH + 70} {HEIGHT + 28}" width="{WIDTH}" role="img" aria-label="{html.escape(title)}"'
    drawing = f"<svg {view}>{frame}{''.join(lines)}{labels}</svg>"
    return f'<figure class="chart"><b>{html.escape(title)}</b>{drawing}<div>{" &nbsp; ".join(legend)}</div></figure>'


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2, h3 { line-height: 1.2; } small { color: #777; font-weight: normal; }
h2 { border-bottom: 1px solid #ddd; margin-top: 2em; }
.row { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-end; }
figure { margin: 0; } figcaption { font-size: 12px; color: #666; text-align: center; }
img { display: block; image-rendering: pixelated; border: 1px solid #ddd; }
.chart { display: inline-block; margin: 0 1.5em 1em 0; vertical-align: top; max-width: 520px; font-size: 13px; }
svg { display: block; max-width: 100%; height: auto; } svg text { font-size: 12px; fill: #666; }
table { border-collapse: collapse; } th, td { padding: 3px 14px 3px 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 1px solid #999; }
pre { background: #f5f5f2; padding: 1em; overflow-x: auto; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } pre { background: #262626; }
h2 { border-color: #444; } img { border-color: #444; } }
"""
