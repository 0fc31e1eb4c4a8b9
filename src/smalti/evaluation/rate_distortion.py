"""Rate-distortion plot of a comparison: each measure over bits per pixel, codecs as curves, tokenizers as points."""

from pathlib import Path
from typing import Any

from smalti.evaluation.comparison import Comparison, Row
from smalti.metrics import TITLES

PANEL = (5.0, 4.2)
"""Width and height of a panel in inches."""


def require_matplotlib() -> Any:
    """The matplotlib module.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("curves: matplotlib is not installed; run pip install 'smalti[plots]'") from error
    return matplotlib


def plot_rate_distortion(comparison: Comparison, path: Path) -> None:
    """Plot PSNR, SSIM and the other measures over bits per pixel of real files, one panel each, and save the plot."""
    panels = list(_measures(comparison.rows[0]))
    matplotlib = require_matplotlib()
    figure = matplotlib.figure.Figure((PANEL[0] * len(panels), PANEL[1]), layout="constrained")
    for title, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        for codec, rows in comparison.curves.items():
            points = sorted((row.file_bits_per_pixel, _measures(row)[title]) for row in rows)
            axes.plot(*zip(*points, strict=True), marker=".", label=TITLES[codec])
        for row in comparison.rows:
            if row.costs is not None:
                axes.plot(row.file_bits_per_pixel, _measures(row)[title], "*", markersize=13, label=row.name)
        axes.set(xlabel="bits per pixel, whole files", ylabel=title)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"{comparison.images} images of {comparison.data}")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _measures(row: Row) -> dict[str, float]:
    """Title → number, of one row; NaN for an infinite or unknown PSNR."""
    quality = {"PSNR, dB": row.quality["psnr"], "SSIM": row.quality["ssim"]}
    judged = {title: number for judgment in row.judgments for title, number in judgment.numbers().items()}
    return {title: float("nan") if number is None else float(number) for title, number in (quality | judged).items()}
