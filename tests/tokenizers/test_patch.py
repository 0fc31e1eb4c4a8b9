"""PatchVQVAE: one quantizer or another, saved and loaded, refused where the halves do not fit."""

import pytest
import torch

from smalti.quantizers import MultiScaleQuantizer, VectorQuantizer
from smalti.tokenizers import PatchVQVAE
from smalti.zoo import load

HALF = {"widths": [8, 12], "blocks": [1, 1], "kernel_size": 3}


@pytest.mark.parametrize(
    "arguments", [{}, {"patch_nums": [1, 2, 4]}, {"patch_nums": [1, 2, 4], "num_codebooks": 1}], ids=str
)
def test_tokens_of_a_saved_model_decode_to_the_reconstruction_at_any_size(arguments, tmp_path):
    torch.manual_seed(0)
    model = PatchVQVAE(16, 6, HALF, **arguments).eval()
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config() == model.config()
    image = torch.rand(2, 3, 37, 30) * 2 - 1
    tokens = again.encode(image)
    assert tokens.grids[-1] == (5, 4)
    torch.testing.assert_close(again.decode(tokens), model(image).reconstruction)


def test_scales_have_a_codebook_each_or_share_one():
    own, shared = (PatchVQVAE(16, 6, HALF, patch_nums=[1, 2], num_codebooks=n).quantizer for n in (None, 1))
    assert isinstance(own, MultiScaleQuantizer)
    assert isinstance(shared, MultiScaleQuantizer)
    assert (len(own.quantizers), len(shared.quantizers)) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": {**HALF, "patch": 2}}, "decoder: got stride 4, expected the encoder's 8"),
        ({"image_channels": 0}, "image_channels: got 0"),
        ({"quantizer": VectorQuantizer(8, 6)}, "quantizer: got 8 codes"),
        ({"num_codebooks": 1}, "num_codebooks: got 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchVQVAE(16, 6, HALF, **arguments)
