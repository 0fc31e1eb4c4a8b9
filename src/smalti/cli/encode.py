"""`smalti encode [RUN] IMAGE... -o TOKENS`: images to a token file; prints tokens per image and bytes of the file."""

import math

from smalti.cli.counted import counted
from smalti.cli.parsing import parse_config
from smalti.jobs.encode import EncodeConfig, EncodedImage, encode
from smalti.zoo import DEFAULT

EXAMPLES = (
    "smalti encode photo.jpg -o photo.tokens",
    "smalti encode runs/photos a.png b.png -o two.tokens",
)
COMMON = ("out", "coding", "force", "device")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Parse, encode, print; returns the exit code."""
    config = parse_config(
        EncodeConfig,
        arguments,
        prog="smalti encode",
        positionals=("run", "images"),
        aliases={"-o": "out"},
        tokenizer=DEFAULT,
        examples=EXAMPLES,
        common=COMMON,
    )
    result = encode(config, lambda image: print(f"{size_of(image)}, {counted(image.num_tokens, 'token')}", flush=True))
    pixels = sum(math.prod(image.image_size) for image in result.images)
    print(
        f"{config.out}: {counted(len(result.images), 'image')}, {result.file_bytes} bytes, "
        f"{8 * result.file_bytes / pixels:.4f} bits per pixel"
    )
    return 0


def size_of(image: EncodedImage) -> str:
    """Name, width and height of an image."""
    height, width = image.image_size
    return f"{image.name}: {width} x {height}"
