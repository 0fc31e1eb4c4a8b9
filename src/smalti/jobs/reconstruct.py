"""Encode and decode one image at its own size: the quickest way to see the quality of a tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from smalti.data import DEFAULT_MAX_PIXELS, image_names, read_pixels, save_image
from smalti.formats import check_no_input, check_replaceable, packed_size
from smalti.jobs.encode import EncodedImage
from smalti.metrics import psnr
from smalti.ops.device import find_device
from smalti.zoo import open_tokenizer


@dataclass(frozen=True)
class ReconstructConfig:
    """Encode and decode one image, save the reconstruction and print its PSNR."""

    run: str
    """Tokenizer: a built-in name, a folder with a saved model, a published checkpoint, or a name on the Hugging Face
    hub."""
    image: str
    """Image file: PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF."""
    out: Path
    """Image file to write, of the same size; the suffix sets the format."""
    force: bool = False
    """Replace an existing file."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Refuse an image with more pixels than this."""
    device: str = "auto"
    """Device to compute on: "cpu", "cuda", ...; "auto": cuda if available."""


@dataclass(frozen=True)
class ReconstructResult:
    """Size and quality of a reconstruction."""

    encoded: EncodedImage
    """Size of the image and of its tokens."""
    psnr: float
    """PSNR of the reconstruction in dB, both images in uint8; infinite if they are equal. Measured before saving; a
    JPEG file loses a little more."""


def reconstruct(config: ReconstructConfig) -> ReconstructResult:
    """Encode one image, decode it, write it and measure it.

    Raises:
        FileNotFoundError: no such run, image, or folder to write to.
        FileExistsError: the output exists and `force` is off.
        ValueError: not an image, an image that is too large, or an output suffix that is no image format.
    """
    check_no_input(config.out, [config.image])
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
