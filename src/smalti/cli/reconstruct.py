"""`smalti reconstruct [RUN] IMAGE OUT`: encode and decode one image; prints tokens, bits per pixel and PSNR."""

from smalti.cli.counted import counted
from smalti.cli.encode import size_of
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
    image = result.encoded
    tokens, size = counted(image.num_tokens, "token"), counted(image.num_bytes, "byte")
    cost = f"{tokens}, {size} packed, {image.bits_per_pixel:.4f} bits per pixel"
    print(f"{size_of(image)}, {cost}, PSNR {result.psnr:.2f} dB -> {config.out}")
    return 0
