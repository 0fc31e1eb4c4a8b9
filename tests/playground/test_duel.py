"""Panel 6: every number of a side agrees with another way to compute it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.formats import TokenFile
from smalti.playground.duel import Side, channels_of, duel, error_scale
from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, TiTok, Tokenizer, to_token_image


def picture(height: int = 20, width: int = 28) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def flat() -> Tokenizer:
    return SimpleVQVAE(16, 8, 8).eval()


def pyramid() -> Tokenizer:
    return SimpleVQVAE(32, 8, 8, patch_nums=(1, 2, 4)).eval()


def test_both_sides_show_the_same_picture_with_their_own_numbers() -> None:
    tokenizers = {"flat": flat(), "pyramid": pyramid()}
    sides = duel(picture(), *tokenizers.items())
    assert [side.name for side in sides] == list(tokenizers)
    for side, tokenizer in zip(sides, tokenizers.values(), strict=True):
        decoded = tokenizer.decode(tokenizer.encode(picture()[None]))[0]
        assert torch.equal(side.reconstruction, decoded)
        off = decoded.numpy().astype(float) - picture().numpy().astype(float)
        assert side.psnr == pytest.approx(10 * math.log10(255**2 / (off**2).mean()))
        np.testing.assert_allclose(side.error.numpy(), np.abs(off).mean(axis=0), atol=1e-3)
        assert side.codes_used == len(set(side.tokens.flatten()[0].tolist()))
        image = to_token_image("picture", side.tokens, 3)
        assert side.file_bytes == len(TokenFile(tokenizer.fingerprint, tokenizer.vocab_size, (image,)).to_bytes())
        assert side.bits_per_pixel == pytest.approx(side.file_bytes * 8 / (20 * 28))
        assert side.seconds > 0
        assert side.numbers()["psnr"] == side.psnr
    largest = max(float(np.percentile(side.error.numpy(), 99)) for side in sides)
    assert error_scale(sides) == pytest.approx(largest, rel=1e-4)


def test_numbers_of_extreme_pictures_stay_json() -> None:
    """A picture below SSIM's window has no SSIM, and an exact reconstruction no finite PSNR."""
    (side, _) = duel(picture(5, 7), ("flat", flat()), ("pyramid", pyramid()))
    assert side.numbers()["ssim"] is None
    values = {**vars(side), "psnr": math.inf}
    assert Side(**values).numbers()["psnr"] is None


def test_a_tokenizer_of_grey_pictures_gets_the_grey_picture() -> None:
    grey = channels_of(picture(), 1)
    expected = (picture().double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)
    assert (grey[0] - expected).abs().max() <= 1
    side, _ = duel(picture(), ("grey", SimpleVQVAE(16, 8, 8, image_channels=1).eval()), ("flat", flat()))
    assert side.reconstruction.shape == (1, 20, 28)


def test_a_picture_that_a_side_refuses_is_named_with_that_side() -> None:
    sizes = {"width": 32, "layers": 1, "num_heads": 2, "patch_size": 4}
    titok = TiTok(VectorQuantizer(16, 4), sizes, image_size=16, num_latent_tokens=5).eval()
    with pytest.raises(ValueError, match=r"^titok: image: got 20x28 pixels, expected at most 16x16"):
        duel(picture(), ("flat", flat()), ("titok", titok))
