"""`smalti encode [RUN] IMAGE... -o TOKENS`: images to a token file; prints the size of each image in bytes."""

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
    result = encode(config, lambda image: print(price(image), flush=True))
    count = len(result.images)
    print(
        f"{config.out}: {count} image{'s' if count > 1 else ''}, file of {result.file_bytes} bytes; "
        f"tokens alone at log2({result.vocab_size}) bits per token: {result.log2_bytes:.0f} bytes"
    )
    return 0


def price(image: EncodedImage) -> str:
    """One line: name, size, tokens, their bytes when packed, bits per pixel."""
    height, width = image.image_size
    cost = f"{image.num_tokens} tokens, {image.num_bytes} bytes packed, {image.bits_per_pixel:.4f} bits per pixel"
    return f"{image.name}: {width} x {height}, {cost}"
