"""The whole pipeline in 90 seconds: use the built-in tokenizer, train a small one, measure it, write a report.

The work is done by the jobs that the other commands call. This file chooses small settings and collects the results for
the report.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.data import TransformConfig, load_image, open_images, save_image
from smalti.evaluation.page import Curve
from smalti.evaluation.report import Picture, Report, write_report
from smalti.jobs.decode import DecodeConfig, decode
from smalti.jobs.demo_box import use_box
from smalti.jobs.encode import EncodeConfig, encode
from smalti.jobs.evaluate import EvaluateConfig, EvaluationResult, evaluate
from smalti.jobs.train import TrainConfig, train
from smalti.metrics import Codec, code_near, psnr
from smalti.ops.pixels import to_float
from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, Tokenizer
from smalti.training import OptimizationConfig, Reporter, Silent, read_log
from smalti.zoo import DEFAULT, filled, open_tokenizer

TRAINING: dict[str, Any] = {
    "data": "embedded",
    "model": "multi-scale",
    "model_args": {"vocab_size": 512, "num_stages": 2, "hidden_dim": 64, "patch_nums": [1, 2, 3, 4, 6, 9, 12]},
    "input": TransformConfig(size=48, crop="random", zoom=2.0, flip=True),
    "loss_weights": {"l2": 1.0, "commitment": 0.1},
    "log_every": 5,
    "sample_every": 10**9,
    "checkpoint_every": 10**9,
}
"""Settings that differ from the defaults of `smalti train`."""

SIZE = 128
"""Side in pixels of the held-out photographs in the evaluation."""

CODECS: dict[str, Codec] = {"JPEG": "jpeg", "WebP": "webp"}
"""Image codecs that the token file is compared with."""

CONTENTS = ("box", "tokenizer", "report.html", "photographs")
"""Files and folders that the demonstration writes into its folder, and that --force replaces."""


@dataclass(frozen=True)
class DemoConfig:
    """Use the built-in tokenizer; train, evaluate and use a small one; write a report."""

    out: Path = Path("demo")
    """Output folder, for the trained tokenizer, the photographs and the report."""
    optimization: OptimizationConfig = field(
        default_factory=lambda: OptimizationConfig(
            steps=600, batch_size=6, lr=5e-3, warmup_steps=30, ema_decay=0.99, weight_decay=1e-4
        )
    )
    """Optimization; the defaults take about a minute on two CPU cores."""
    seed: int = 0
    """Seed of initial weights, order of the images and augmentation."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, ...; auto: cuda if available."""
    force: bool = False
    """Replace the files of an earlier demonstration in the folder."""


@dataclass(frozen=True)
class DemoResult:
    """The result of the demonstration."""

    report: Path
    """The report, an HTML page."""
    run: Path
    """Run directory of the trained tokenizer."""
    train_set: EvaluationResult
    """Evaluation on the training photographs."""
    held_out: EvaluationResult
    """Evaluation on the two held-out photographs."""
    seconds: float
    """Time for everything."""


def demo(
    config: DemoConfig,
    reporter: Reporter | None = None,
    say: Callable[[str], None] = lambda line: None,
    next_steps: Sequence[str] = (),
) -> DemoResult:
    """Run the demonstration.

    Args:
        config: output folder and training settings.
        reporter: receives the progress of the training.
        say: called with each line of text for the user.
        next_steps: commands to try afterwards, for the report.

    Raises:
        FileExistsError: the folder has files of an earlier demonstration and `force` is off.
        ValueError: the embedded photographs are not installed.
    """
    begun = time.monotonic()
    _clear(config.out, config.force)
    if filled(DEFAULT):
        use_box(config.out / "box", config.device, say)
    transcript = classic_demonstrations()
    for line in transcript:
        say(line)
    run = config.out / "tokenizer"
    train(
        TrainConfig(out=str(run), optimization=config.optimization, seed=config.seed, device=config.device, **TRAINING),
        reporter or Silent(),
    )
    train_set = evaluate(EvaluateConfig(str(run), "embedded", device=config.device, judges=()))
    held_out = evaluate(EvaluateConfig(str(run), "embedded:test", size=SIZE, device=config.device, judges=()))
    tokenizer = open_tokenizer(run)
    pictures = [_use(config, run, tokenizer, index) for index in range(2)]
    seconds = time.monotonic() - begun
    report = Report(
        title="smalti: a multi-scale tokenizer, trained in a minute",
        introduction=(
            f"Trained for {config.optimization.steps} steps on crops of the photographs in scikit-image and "
            "scikit-learn. The two photographs below are not in the training set."
        ),
        numbers=_numbers(train_set, held_out, seconds),
        pictures=pictures,
        charts=_charts(read_log(run), [f"{a}×{b}" for a, b in train_set.usage.grids]),
        tables={"Codebook usage on the training photographs, per scale 各尺度码本使用率": _usage_table(train_set)},
        transcript="\n".join(transcript),
        next_steps=next_steps,
    )
    write_report(config.out / "report.html", report, force=config.force)
    return DemoResult(config.out / "report.html", run, train_set, held_out, seconds)


def classic_demonstrations() -> list[str]:
    """A `VectorQuantizer` and a `SimpleVQVAE` on random input: shapes and losses, in English and Chinese."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = torch.randn(1, 64, 8, 8)
        quantized, loss, indices = VectorQuantizer(16, 64)(z)
        image = torch.randn(1, 3, 64, 64)
        reconstruction, vq_loss, tokens = SimpleVQVAE(16, 64).eval()(image)
    return [
        "VectorQuantizer(16, 64)",
        f"  latent 潜变量                 {tuple(z.shape)}",
        f"  quantized 量化结果            {tuple(quantized.shape)}",
        f"  indices 码字索引              {tuple(indices.shape)}",
        f"  loss 量化损失                 {loss.item():.4f}",
        "SimpleVQVAE(16, 64)",
        f"  image 图像                    {tuple(image.shape)}",
        f"  reconstruction 重建图像       {tuple(reconstruction.shape)}",
        f"  indices 词元索引              {tuple(tokens.shape)}",
        f"  vq_loss 量化损失              {vq_loss.item():.4f}",
    ]


def _clear(out: Path, force: bool) -> None:
    taken = [out / name for name in CONTENTS if (out / name).exists()]
    if out.is_dir() and any(out.iterdir()) and not taken:
        raise FileExistsError(f"out: {out} is not empty and holds no demonstration; choose another name")
    if taken and not force:
        raise FileExistsError(f"out: {taken[0]} exists; force=True replaces the files of an earlier demonstration")
    for path in taken:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _use(config: DemoConfig, run: Path, tokenizer: Tokenizer, index: int) -> Picture:
    """Encode one held-out photograph into a token file, decode it, and decode its scales one after another."""
    source = open_images("embedded:test", channels=tokenizer.image_channels)
    name = Path(source.key(index)).stem
    folder = config.out / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    photograph = torch.tensor(source.load(index)).permute(2, 0, 1)
    original, token_file, decoded = (folder / f"{name}{end}" for end in (".png", ".tokens", "-decoded.png"))
    save_image(original, photograph)
    coded = encode(EncodeConfig(str(run), (str(original),), token_file, coding="learned", device=config.device))
    decode(DecodeConfig(str(run), token_file, decoded, device=config.device))
    reconstruction = torch.tensor(load_image(decoded, tokenizer.image_channels)).permute(2, 0, 1)
    # At the trained size the coarsest scale is one token, which shows the scales best.
    small = TRAINING["input"].centered().apply(source.load(index))[None]
    tokens = tokenizer.encode(small)
    height, width = photograph.shape[1:]
    size = token_file.stat().st_size
    return Picture(
        name=name,
        original=photograph,
        files=_same_price(photograph, reconstruction, size),
        progressive=[image[0] for image in tokenizer.progressive(tokens)],
        maps=[scale[0] for scale in tokens.indices],
        caption=(
            f"{width}×{height} pixels. The token file has {size:,} bytes, {8 * size / (height * width):.2f} bits per "
            f"pixel; its {coded.images[0].num_tokens:,} tokens at log2 K bits each would take {coded.log2_bytes:,.0f} "
            f"bytes. JPEG and WebP are at the quality that gives the nearest file size, or at their lowest. "
            f"Below: scale by scale, at {small.shape[3]}×{small.shape[2]}."
        ),
    )


def _same_price(photograph: Tensor, reconstruction: Tensor, num_bytes: int) -> dict[str, Tensor]:
    """The reconstruction, and the photograph as JPEG and WebP of the same size: title with bytes and PSNR → image."""
    files = {"tokens 词元": (reconstruction, num_bytes)}
    for name, codec in CODECS.items():
        coded = code_near(photograph, codec, num_bytes)
        files[name] = (coded.image, coded.num_bytes)
    original = to_float(photograph[None])
    return {
        f"{name}: {size:,} bytes, {psnr(to_float(image[None]), original).item():.2f} dB": image
        for name, (image, size) in files.items()
    }


def _numbers(train_set: EvaluationResult, held_out: EvaluationResult, seconds: float) -> dict[str, str]:
    quality, size = held_out.quality, held_out.size
    assert size is not None
    return {
        f"PSNR on the two held-out photographs at {size[1]}×{size[0]}": f"{quality['psnr']:.2f} dB",
        "the same for one mean colour per image": f"{quality['psnr_mean_color']:.2f} dB",
        "SSIM on the two held-out photographs": f"{quality['ssim']:.3f}",
        "codes used on the training photographs": f"{train_set.usage.total.usage:.1%} of {train_set.usage.vocab_size}",
        "codebook perplexity on the training photographs": f"{train_set.usage.total.perplexity:.0f}",
        "tokens per image": f"{held_out.tokens_per_image:.0f}",
        "bits per pixel": f"{held_out.bits_per_pixel:.3f}",
        "total time": f"{seconds:.0f} s",
    }


def _usage_table(result: EvaluationResult) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("scale", "grid", "tokens", "codes used", "usage", "perplexity")]
    for k, (grid, scale) in enumerate(zip(result.usage.grids, result.usage.scales, strict=True)):
        counts = (str(scale.tokens), str(scale.used_codes), f"{scale.usage:.1%}", f"{scale.perplexity:.1f}")
        rows.append((str(k), "×".join(map(str, grid)), *counts))
    return rows


def _charts(log: list[dict[str, Any]], scales: list[str]) -> dict[str, list[Curve]]:
    steps = [line["step"] for line in log]
    usage = [Curve(side, steps, [line["usage_per_scale"][k] for line in log]) for k, side in enumerate(scales)]
    return {
        "Loss": [Curve("total", steps, [line["loss"] for line in log])]
        + [Curve(name, steps, [line["terms"][name] for line in log]) for name in log[0]["terms"]],
        "PSNR of the batch, dB": [Curve("PSNR", steps, [line["psnr"] for line in log])],
        "Codebook usage of the batch": [Curve("all", steps, [line["usage"] for line in log]), *usage],
    }
