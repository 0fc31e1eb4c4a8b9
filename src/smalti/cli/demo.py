"""`smalti demo`: use the built-in tokenizer, then train, evaluate and use a small one, and write a report."""

from pathlib import Path

from smalti.cli.parsing import parse_config
from smalti.jobs.demo import SIZE, DemoConfig, demo
from smalti.training import console_reporter
from smalti.zoo import DEFAULT, filled

EXAMPLES = (
    "smalti demo",
    "smalti demo --out demo --optimization.steps 100",
)
COMMON = ("out", "seed", "device", "force", "optimization.steps")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Run the demonstration, then print the results and the next steps; returns the exit code."""
    config = parse_config(DemoConfig, arguments, prog="smalti demo", examples=EXAMPLES, common=COMMON)
    steps = next_steps(config.out)
    result = demo(config, console_reporter(), print, steps)
    quality, codes = result.held_out.quality, result.train_set.usage.total
    print(f"held-out photographs   PSNR {quality['psnr']:.2f} dB, mean colour {quality['psnr_mean_color']:.2f} dB")
    print(f"training photographs   {codes.usage:.1%} of the codes used")
    print(f"time                   {result.seconds:.0f} s")
    print(f"\nOpen the report: {result.report}\n\nNext steps:")
    print("\n".join(f"  {line}" for line in steps))
    return 0


def next_steps(out: Path) -> list[str]:
    """Commands to try after the demonstration."""
    boxed = [
        f"smalti reconstruct PHOTO.jpg photo.png    # with {DEFAULT}, which comes with the package",
        f"smalti train FOLDER_OF_PHOTOS --init_from {DEFAULT} --out my-tokenizer   # your own images",
    ]
    return [
        *(boxed if filled(DEFAULT) else []),
        f"smalti eval {out}/tokenizer embedded:test --size {SIZE}   # measure again",
        f"smalti encode {out}/tokenizer PHOTO.jpg -o photo.tokens",
        f"smalti decode {out}/tokenizer photo.tokens -o photo.png",
        f"smalti reconstruct {out}/tokenizer PHOTO.jpg photo.png",
        "smalti train FOLDER_OF_PHOTOS --out my-tokenizer   # from random weights",
    ]
