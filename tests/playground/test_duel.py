"""Panel 6: every number of a side agrees with another way to compute it."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.formats import TokenFile
from smalti.playground.duel import Side, measured, picture_of, pixels_of, show, shown
from smalti.playground.opened import Opened
from smalti.playground.workspace import Workspace
from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, TiTok, Tokenizer, to_token_image

TOKENIZERS: dict[str, Tokenizer] = {
    "flat": SimpleVQVAE(16, 8, 8).eval(),
    "pyramid": SimpleVQVAE(32, 8, 8, patch_nums=(1, 2, 4)).eval(),
    "grey": SimpleVQVAE(16, 8, 8, image_channels=1).eval(),
}


def picture(width: int = 28, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_numbers_of_a_side_are_those_of_its_reconstruction(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    side = measured(picture(), name, tokenizer)
    pixels = np.asarray(picture().convert("L") if name == "grey" else picture())
    image = torch.from_numpy(pixels.reshape(20, 28, -1).transpose(2, 0, 1).copy())
    decoded = tokenizer.decode(tokenizer.encode(image[None]))[0]
    assert torch.equal(side.reconstruction, decoded)
    off = decoded.numpy().astype(float) - image.numpy().astype(float)
    assert side.psnr == pytest.approx(10 * math.log10(255**2 / (off**2).mean()))
    np.testing.assert_allclose(side.error.numpy(), np.abs(off).mean(axis=0), atol=1e-3)
    assert side.codes_used == len(set(side.tokens.flatten()[0].tolist()))
    stored = to_token_image("picture", side.tokens, tokenizer.image_channels)
    assert side.file_bytes == len(TokenFile(tokenizer.fingerprint, tokenizer.vocab_size, (stored,)).to_bytes())
    assert side.bits_per_pixel == pytest.approx(side.file_bytes * 8 / (20 * 28))
    assert side.seconds > 0


def test_numbers_of_extreme_pictures_stay_json() -> None:
    """A picture below SSIM's window has no SSIM, and an exact reconstruction no finite PSNR."""
    side = measured(picture(7, 5), "flat", TOKENIZERS["flat"])
    assert side.ssim is None
    assert shown(Side(**{**vars(side), "psnr": math.inf}))["psnr"] is None


def workspace_of(models: dict[str, Tokenizer], size: tuple[int, int] = (28, 20)) -> Workspace:
    workspace = Workspace({name: Opened(name, tokenizer) for name, tokenizer in models.items()})
    buffer = io.BytesIO()
    picture(*size).save(buffer, "PNG")
    workspace.open_picture("cat.png", buffer.getvalue())
    return workspace


def test_both_sides_show_the_picture_of_the_tab() -> None:
    workspace = workspace_of(TOKENIZERS)
    answer = show(workspace, {"left": "pyramid", "right": "grey"})
    assert (answer["width"], answer["height"]) == (28, 20)
    for data, name in zip(answer["sides"], ("pyramid", "grey"), strict=True):
        side = measured(picture(), name, TOKENIZERS[name])
        assert (data["name"], data["codes"], data["bytes"]) == (name, side.codes_used, side.file_bytes)
        png = Image.open(io.BytesIO(base64.b64decode(data["picture"].split(",")[1])))
        assert np.array_equal(np.asarray(png), side.reconstruction.permute(1, 2, 0).squeeze(2).numpy())
    assert workspace.opened.name == "flat"  # the tab itself goes on as before
    with pytest.raises(ValueError, match="model: got 'x', expected one of flat, pyramid, grey"):
        show(workspace, {"left": "x", "right": "grey"})
    with pytest.raises(ValueError, match="picture: got none"):
        show(Workspace(workspace.models), {"left": "flat", "right": "grey"})


def test_without_an_opened_picture_the_tokens_are_the_picture() -> None:
    workspace = workspace_of(TOKENIZERS)
    workspace.picture = None
    assert torch.equal(pixels_of(picture_of(workspace), 3), workspace.step.image[0])


def test_a_tokenizer_of_small_pictures_shrinks_both_sides() -> None:
    sizes = {"width": 32, "layers": 1, "num_heads": 2, "patch_size": 4}
    titok = TiTok(VectorQuantizer(16, 4), sizes, image_size=32, num_latent_tokens=5).eval()
    workspace = workspace_of({"flat": TOKENIZERS["flat"], "titok": titok}, (40, 30))
    answer = show(workspace, {"left": "flat", "right": "titok"})
    assert (answer["width"], answer["height"]) == (32, 24)
    with pytest.raises(ValueError, match=r"^titok: image: got 30x40 pixels, expected at most 32x32"):
        measured(picture(40, 30), "titok", titok)
