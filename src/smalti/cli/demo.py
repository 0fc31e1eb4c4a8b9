"""`smalti demo`: use the built-in tokenizer, then train, evaluate and use a small one, and write a report."""

from smalti.cli.parsing import parse_config
from smalti.jobs.demo import DemoConfig, demo, next_steps
from smalti.training import console_reporter

EXAMPLES = (
    "smalti demo",
    "smalti demo --out demo --optimization.steps 100",
)
COMMON = ("out", "seed", "device", "force", "optimization.steps")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Run the demonstration, then print the results and the next steps; returns the exit code."""
    config = parse_config(DemoConfig, arguments, prog="smalti demo", examples=EXAMPLES, common=COMMON)
    result = demo(config, console_reporter(), print)
    quality, codes = result.held_out.quality, result.train_set.usage.total
    print(f"held-out photographs   PSNR {quality['psnr']:.2f} dB, mean colour {quality['psnr_mean_color']:.2f} dB")
    print(f"training photographs   {codes.usage:.1%} of the codes used")
    print(f"time                   {result.seconds:.0f} s")
    print(f"\nOpen the report: {result.report}\n\nNext steps:")
    print("\n".join(f"  {line}" for line in next_steps(config.out)))
    return 0
