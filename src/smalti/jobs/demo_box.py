"""The first part of the demonstration: two photographs through the built-in tokenizer, in seconds.

Nothing is trained. The photographs are encoded to token files and decoded, and compared with image codecs at the same
number of bytes.
"""

from collections.abc import Callable
from pathlib import Path

from smalti.data import open_images, save_image
from smalti.jobs.compare import CompareConfig, compare
from smalti.jobs.decode import FROM_FILE, DecodeConfig, decode
from smalti.jobs.encode import EncodeConfig, encode
from smalti.zoo import DEFAULT

SIZE = 256
"""Side at which the tokenizer and the codecs are compared."""


def use_box(folder: Path, device: str, say: Callable[[str], None]) -> None:
    """Encode, decode and compare the held-out photographs.

    Args:
        folder: output folder for photographs, token files, decoded images and the picture of the comparison.
        device: where to compute.
        say: called with each line of text for the user.
    """
    folder.mkdir(parents=True)
    source = open_images("embedded:test")
    say(f"{DEFAULT}, which comes with the package")
    for index in range(len(source)):
        name = Path(source.key(index)).stem
        original, tokens, decoded = (folder / f"{name}{end}" for end in (".png", ".tokens", "-decoded.png"))
        save_image(original, source.load(index))
        result = encode(EncodeConfig(DEFAULT, (str(original),), tokens, device=device))
        decode(DecodeConfig(FROM_FILE, tokens, decoded, device=device))
        (image,) = result.images
        say(f"  {decoded}: from {image.num_tokens:,} tokens, {result.file_bytes:,} bytes")
    compared = CompareConfig((DEFAULT,), "embedded:test", size=SIZE, judges=(), device=device)
    comparison = compare(compared)
    for row in comparison.rows:
        say(f"  {row.name}: PSNR {row.quality['psnr']:.2f} dB, {row.file_bytes:,.0f} bytes at {SIZE} x {SIZE}")
    save_image(folder / "comparison.png", comparison.picture)
