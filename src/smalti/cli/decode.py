"""`smalti decode [RUN] TOKENS OUT`: a token file to its image, or to a folder of images if it holds several."""

from smalti.cli.parsing import parse_config
from smalti.jobs.decode import FROM_FILE, DecodeConfig, DecodedImage, decode

EXAMPLES = (
    "smalti decode photo.tokens picture.png",
    "smalti decode runs/photos two.tokens pictures",
)
COMMON = ("force", "device")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Parse, decode, print; returns the exit code."""
    config = parse_config(
        DecodeConfig,
        arguments,
        prog="smalti decode",
        positionals=("run", "tokens", "out"),
        aliases={"-o": "out"},
        tokenizer=FROM_FILE,
        examples=EXAMPLES,
        common=COMMON,
    )
    decode(config, lambda image: print(_line(image), flush=True))
    return 0


def _line(image: DecodedImage) -> str:
    height, width = image.image_size
    return f"{image.path}: {width} x {height}, from {image.name}"
