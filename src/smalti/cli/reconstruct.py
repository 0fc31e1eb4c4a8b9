"""`smalti reconstruct [RUN] IMAGE OUT`: encode and decode one image; prints tokens, bits per pixel and PSNR."""

from smalti.cli.encode import price
from smalti.cli.parsing import parse_config
from smalti.jobs.reconstruct import ReconstructConfig, reconstruct
from smalti.zoo import DEFAULT

EXAMPLES = (
    "smalti reconstruct photo.jpg again.png",
    "smalti reconstruct runs/photos photo.jpg again.png",
)
COMMON = ("force", "device")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Parse, reconstruct, print; returns the exit code."""
    config = parse_config(
        ReconstructConfig,
        arguments,
        prog="smalti reconstruct",
        positionals=("run", "image", "out"),
        aliases={"-o": "out"},
        tokenizer=DEFAULT,
        examples=EXAMPLES,
        common=COMMON,
    )
    result = reconstruct(config)
    print(f"{price(result.encoded)}, PSNR {result.psnr:.2f} dB -> {config.out}")
    return 0
