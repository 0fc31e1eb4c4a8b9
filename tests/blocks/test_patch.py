"""Patch encoder and decoder: rearrangement against torch's, no grid at the start, reach of the blocks."""

import pytest
import torch
import torch.nn.functional as F

from smalti.blocks.patch import FromPatches, PatchBlock, PatchConfig, PatchDecoder, PatchEncoder, ToPatches
from smalti.formats.plain import from_plain, to_plain

SMALL = PatchConfig(patch=4, widths=(8, 16), blocks=(1, 2), kernel_size=3, expansion=2)


@pytest.mark.parametrize("side", [2, 4])
def test_patches_are_those_of_pixel_unshuffle_with_the_channel_last(side):
    x_BHWC = torch.randn(2, 8, 12, 3)
    theirs = F.pixel_unshuffle(x_BHWC.movedim(-1, 1), side)  # channel c side² + side i + j
    theirs = theirs.unflatten(1, (3, side * side)).transpose(1, 2).flatten(1, 2).movedim(1, -1)
    patches = ToPatches(side)(x_BHWC)
    assert torch.equal(patches, theirs)
    assert torch.equal(FromPatches(side)(patches), x_BHWC)


def test_a_new_decoder_shows_no_grid():
    """The 4 x 4 pixels of a patch start equal, and so do the features of the 2 x 2 patches of a latent cell."""
    image = PatchDecoder(SMALL, 3, 5)(torch.randn(2, 5, 3, 4))
    assert image.shape == (2, 3, 24, 32)
    patches = image.unflatten(3, (8, 4)).unflatten(2, (6, 4))
    torch.testing.assert_close(patches, patches[:, :, :, :1, :, :1].expand_as(patches))
    flat = PatchDecoder(SMALL, 3, 5)(torch.ones(1, 5, 9, 9))[:, :, 24:48, 24:48]  # away from the zero padding
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))


def test_a_block_starts_as_the_identity_and_then_reaches_half_a_kernel():
    block = PatchBlock(4, PatchConfig(widths=(4,), blocks=(1,), kernel_size=5))
    x_BHWC = torch.randn(1, 9, 9, 4, requires_grad=True)
    assert torch.equal(block(x_BHWC), x_BHWC)
    torch.nn.init.normal_(block.narrow.weight)
    block(x_BHWC)[0, 4, 4].sum().backward()
    reached = x_BHWC.grad[0].abs().sum(-1) > 0
    assert reached[2:7, 2:7].all()
    assert reached.sum() == 25


def test_encoder_halves_as_often_as_its_stride_says():
    latent = PatchEncoder(SMALL, 1, 6)(torch.randn(2, 1, 16, 24))
    assert SMALL.stride == 8
    assert latent.shape == (2, 6, 2, 3)


def test_a_config_survives_json():
    plain = to_plain(SMALL)
    assert plain["widths"] == [8, 16]
    assert from_plain(PatchConfig, plain) == SMALL
    assert from_plain(PatchConfig, SMALL) is SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 0}, "patch: got 0"),
        ({"widths": []}, "widths: got"),
        ({"blocks": [1]}, "blocks: got"),
        ({"kernel_size": 4}, "kernel_size: got 4"),
        ({"expansion": 0}, "expansion: got 0"),
        ({"depth": 3}, "depth: unknown"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_plain(PatchConfig, change)
