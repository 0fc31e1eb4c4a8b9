"""The tokenizers in the box beside JPEG, WebP, AVIF and JPEG XL, on photographs that none of them was trained on.

    python benchmarks/boxed.py [--photos ../shared/photos/train] [--models photo-f8 ...] [--out boxed]

Of the photographs in the folder, sorted by name, every twelfth from the sixth on is held out of training (the cards
say so too); the 256 x 256 centre crops of those that are large enough judge. Bytes are those of whole files, headers
and checksums included. The judge of sets is HED's VGG16, since photo-f8 was trained with EfficientNet-Lite0. The codecs
stand at the bytes of each tokenizer and, as curves, at five qualities. Writes boxed.json, boxed.md, boxed.png (rates
and distortions) and boxed-pictures.png (of the photographs that come with scikit-image and scikit-learn).
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import processor
from PIL import Image

from smalti.data import save_image
from smalti.evaluation.comparison import Comparison, Row
from smalti.evaluation.rate_distortion import plot_rate_distortion
from smalti.jobs.compare import CompareConfig, compare
from smalti.metrics import TITLES
from smalti.zoo import BOXED, filled

SIDE = 256
HELD_OUT = slice(5, None, 12)
"""Of the photographs in order of their names."""
SHOWN = "embedded:test"
"""Photographs in the picture; they are in no training either."""


def centre_crops(photos: Path, folder: Path) -> None:
    """Write the judging crops, no pixel resized, of the photographs with no side below `SIDE`."""
    paths = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for path in paths[HELD_OUT]:
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        left, top = ((side - SIDE) // 2 for side in photo.size)
        if min(left, top) >= 0:
            photo.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{path.stem}.png")


def at_equal_quality(comparison: Comparison, row: Row) -> dict[str, float | None]:
    """Codec → its bits per pixel at the row's PSNR, between the points of its curve; None outside the curve."""
    wanted = float(row.quality["psnr"] or 0)
    bits: dict[str, float | None] = {}
    for codec, points in comparison.curves.items():
        rates = [point.file_bits_per_pixel for point in points]
        decibels = [float(point.quality["psnr"] or 0) for point in points]
        inside = decibels[0] <= wanted <= decibels[-1]
        bits[TITLES[codec]] = float(np.interp(wanted, decibels, rates)) if inside else None
    return bits


def markdown(result: dict, comparison: Comparison) -> str:
    """The document of the measurement."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    judges = [title for judgment in comparison.rows[0].judgments for title in judgment.numbers()]
    lines = [
        "# The tokenizers in the box and image codecs",
        "",
        f"`make bench-boxed`, {result['date']}, {result['machine']}, {result['cores']} cores, {versions}.",
        "",
        f"What is compared: whole files of {comparison.images} photographs, {SIDE} × {SIDE} centre crops of every "
        "twelfth of the photographs, as far as they are large enough; no training saw them. Networks run in fp32, "
        f"channels last, threads: {comparison.machine['threads']}. Tokens are coded with `--coding context` where the "
        "box has a codec. The codecs are called as `metrics/codecs.py` says (AVIF at speed 4), each photograph at the "
        "quality whose file is nearest in bytes to its token file, and as curves at five qualities. Nobody was tuned "
        "on these photographs. PSNR and bits per pixel are means over photographs.",
        "",
        "What the reader may not conclude: that the same holds for drawings, text, faces or other sizes. With "
        f"{comparison.images} photographs a Fréchet distance tells large differences only.",
        "",
        "![Rates and distortions](boxed.png)",
        "",
        f"| | PSNR, dB | SSIM | file bytes | bits/pixel | {' | '.join(judges)} |",
        f"|---|{'---|' * (4 + len(judges))}",
    ]
    for row in (*comparison.rows, *(row for rows in comparison.curves.values() for row in rows)):
        numbers = {title: n for judgment in row.judgments for title, n in judgment.numbers().items()}
        cells = [f"{row.quality['psnr']:.2f}", f"{row.quality['ssim']:.4f}", f"{row.file_bytes:.0f}"]
        cells += [f"{row.file_bits_per_pixel:.4f}", *(f"{numbers[title]:.4f}" for title in judges)]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    lines += ["", "Bits per pixel that a codec needs for the PSNR of each tokenizer, from its curve:", ""]
    lines += [f"| | ours | {' | '.join(TITLES[codec] for codec in comparison.curves)} |"]
    lines += [f"|---|{'---|' * (1 + len(comparison.curves))}"]
    for row in comparison.rows:
        if row.costs is not None:
            needed = [f"{bits:.3f}" if bits else "outside" for bits in at_equal_quality(comparison, row).values()]
            lines.append(f"| {row.name} | {row.file_bits_per_pixel:.3f} | {' | '.join(needed)} |")
    lines += ["", "Codes used by these photographs, each scale by itself:", ""]
    lines += ["| | scale | tokens | codes used | could be used | perplexity |", "|---|---|---|---|---|---|"]
    for row in comparison.rows:
        if row.costs is not None:
            usage = row.costs.usage
            scales = [(f"{'×'.join(map(str, grid))}", s) for grid, s in zip(usage.grids, usage.scales, strict=True)]
            for scale, told in (*scales, ("all", usage.total)):
                able = min(usage.vocab_size, told.tokens)
                cells = [row.name, scale, told.tokens, told.used_codes, able, f"{told.perplexity:.0f}"]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", "![Photographs](boxed-pictures.png)", ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos/train"))
    parser.add_argument("--models", nargs="+", default=[name for name in BOXED if filled(name)])
    parser.add_argument("--codecs", nargs="+", default=["jpeg", "webp", "avif", "jxl"])
    parser.add_argument("--judges", nargs="*", default=["hed_vgg16"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/boxed"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        centre_crops(options.photos, Path(folder))
        config = CompareConfig(
            tuple(options.models), folder, judges=tuple(options.judges), codecs=tuple(options.codecs),
            curves=True, size=SIDE,
        )  # fmt: skip
        comparison = replace(compare(config), data="held-out photographs")
    shown = compare(CompareConfig(tuple(options.models), SHOWN, judges=(), codecs=("webp", "avif"), size=SIDE))
    told = comparison.to_dict()
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "pillow", "pillow-jxl-plugin")},
        **{key: told[key] for key in ("images", "images_sha256", "protocol", "rows", "curves")},
    }
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(result, comparison))
    plot_rate_distortion(comparison, options.out.with_suffix(".png"))
    pictures = options.out.with_name(f"{options.out.name}-pictures.png")
    save_image(pictures, shown.picture, force=True)


if __name__ == "__main__":
    main()
