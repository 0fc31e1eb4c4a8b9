"""One image through a tokenizer and back, at its own size: the quickest look at what a tokenizer keeps."""

from dataclasses import dataclass
from pathlib import Path

from smalti.data import DEFAULT_MAX_PIXELS, image_names, read_pixels, save_image
from smalti.formats import check_replaceable, packed_size
from smalti.jobs.encode import EncodedImage
from smalti.metrics import psnr
from smalti.ops.device import find_device
from smalti.zoo import open_tokenizer

__all__ = ["ReconstructConfig", "ReconstructResult", "reconstruct"]


@dataclass(frozen=True)
class ReconstructConfig:
    """Turn one image into tokens and back, and measure what that changed."""

    run: str
    """The tokenizer: a name of the box, a folder with a saved model, a published checkpoint, or a name on the hub."""
    image: str
    """Image file: PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF."""
    out: Path
    """The image to write, of the same size and of the format that its suffix names."""
    force: bool = False
    """Replace an existing file."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Refuse an image of more pixels."""
    device: str = "auto"
    """Where to compute: "cpu", "cuda", ..., or "auto" for cuda if there is one."""


@dataclass(frozen=True)
class ReconstructResult:
    """What it cost and how close it came."""

    encoded: EncodedImage
    """Size of the image and price of its tokens."""
    psnr: float
    """PSNR of the reconstruction in dB, both images in uint8; infinite if nothing changed. Taken before saving: a JPEG
    loses a little more."""


def reconstruct(config: ReconstructConfig) -> ReconstructResult:
    """Encode one image, decode it, write it and measure it.

    Raises:
        FileNotFoundError: no such run, image, or folder to write to.
        FileExistsError: the output exists and `force` is off.
        ValueError: not an image, too large a one, or an output suffix that is no image format.
    """
    check_replaceable(config.out, config.force)
    device = find_device(config.device)
    tokenizer = open_tokenizer(config.run).to(device)
    pixels = read_pixels(config.image, tokenizer.image_channels, config.max_pixels).to(device)
    tokens = tokenizer.encode(pixels)
    reconstruction = tokenizer.decode(tokens)
    save_image(config.out, reconstruction[0], force=config.force)
    (name,) = image_names((config.image,))
    size = packed_size(tokens.num_tokens, tokenizer.vocab_size)
    encoded = EncodedImage(name, tokens.image_size, tokens.num_tokens, size)
    return ReconstructResult(encoded, psnr(reconstruction, pixels).item())
