"""Parts of a self-contained HTML page: pictures are embedded PNGs, curves are SVG, no scripts."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smalti.data import save_image
from smalti.formats.atomic import replace_file

COLOURS = ("#2f6fab", "#c1552d", "#3f8f5b", "#8a5aa8", "#b58a1b", "#4d8f97", "#a8476b", "#6b7a2a")
WIDTH, HEIGHT = 520, 220
"""Size of a chart in SVG units."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    """Its name in the legend."""
    x: Sequence[float]
    """Steps."""
    y: Sequence[float]
    """Values."""


def write_page(path: Path, title: str, introduction: str, sections: Sequence[str], force: bool = False) -> None:
    """Write a page.

    Args:
        path: the file.
        title: heading.
        introduction: one or two sentences.
        sections: HTML of the sections, as `section` returns it.
        force: replace an existing file.

    Raises:
        FileExistsError: the file exists and `force` is off.
    """
    heading = html.escape(title)
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title><style>{_STYLE}</style></head>
<body><h1>{heading}</h1><p>{html.escape(introduction)}</p>{"".join(sections)}</body></html>
"""
    with replace_file(path, force) as temporary:
        temporary.write_text(page, encoding="utf-8")


def section(title: str, chinese: str, body: str) -> str:
    """A heading, its translation, and HTML below it."""
    translated = f" <small>{html.escape(chinese)}</small>" if chinese else ""
    return f"<h2>{html.escape(title)}{translated}</h2>{body}"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """A table; the first row is its head."""
    head, *body = rows
    cells = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in body)
    return f"<table>{f'<tr>{cells}</tr>' if any(head) else ''}{lines}</table>"


def figure(image: Tensor, caption: str, width: int) -> str:
    """A picture, uint8 (C, H, W), shown at this width in pixels, with a caption."""
    buffer = io.BytesIO()
    save_image(buffer, image)
    data = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    return f'<figure><img src="{source}" width="{width}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def chart(title: str, curves: Sequence[Curve]) -> str:
    """Curves in one SVG: axes fitted to the data, a legend below."""
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
