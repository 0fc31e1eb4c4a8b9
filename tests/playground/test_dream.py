"""Panel 7: bits add up to the prior's own likelihood, and only chosen tokens change."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_priors import FLAT, PYRAMID, awake, masked, next_scale, next_scale_deep, next_token, sequences

from smalti.playground.dream import fitted, meaning, no_region, painted, predictable, redraw, surprise
from smalti.priors import MaskedTransformer, Prior, TokenLayout
from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, TiTok, Tokens

MAKERS: dict[str, Callable[[], Prior]] = {
    "next-scale": next_scale,
    "next-scale, two codes": next_scale_deep,
    "next-token": next_token,
    "masked": masked,
    "without classes": lambda: next_token(num_classes=0),
}


@pytest.fixture(params=MAKERS)
def prior(request: pytest.FixtureRequest) -> Prior:
    torch.manual_seed(0)
    return awake(MAKERS[request.param]())


def tokens_of(prior: Prior) -> Tokens:
    layout, (sequence, _) = prior.layout, sequences(prior, batch=1)
    return Tokens.unflatten(sequence, layout.grids, layout.image_size, layout.vocab_size, torch.uint8)


def test_bits_of_all_maps_add_up_to_the_likelihood(prior: Prior) -> None:
    tokens = tokens_of(prior)
    found = surprise(prior, tokens)
    assert [tuple(bits.shape) for bits in found.maps] == [grid[:2] for grid in prior.layout.grids]
    assert sum(bits.sum().item() for bits in found.maps) == pytest.approx(found.total, rel=1e-5)
    if not isinstance(prior, MaskedTransformer):
        loss = prior.loss(tokens.flatten(), torch.tensor([prior.num_classes])).item()
        assert found.total == pytest.approx(loss / math.log(2) * prior.layout.num_tokens, rel=1e-5)
    if prior.num_classes:
        assert surprise(prior, tokens, 1).total != pytest.approx(found.total, rel=1e-4)


def test_only_chosen_tokens_are_drawn_anew(prior: Prior) -> None:
    tokens = tokens_of(prior)
    chosen = torch.rand(prior.layout.num_tokens, generator=torch.Generator().manual_seed(2)) < 0.5
    drawn = [redraw(prior, tokens, chosen, seed=seed).flatten()[0] for seed in range(3)]
    for sequence in drawn:
        assert torch.equal(sequence[~chosen], tokens.flatten()[0, ~chosen])
        assert 0 <= sequence.min() <= sequence.max() < prior.layout.vocab_size
    assert len({tuple(sequence.tolist()) for sequence in drawn}) > 1
    again = redraw(prior, tokens, chosen, seed=1)
    assert torch.equal(again.flatten()[0], drawn[1])
    assert (again.image_dtype, again.fingerprint) == (tokens.image_dtype, tokens.fingerprint)


def test_at_a_low_temperature_drawn_tokens_surprise_less(prior: Prior) -> None:
    tokens = tokens_of(prior)
    everything = torch.ones(prior.layout.num_tokens, dtype=torch.bool)
    cold = redraw(prior, tokens, everything, temperature=0.01)
    assert surprise(prior, cold).total < surprise(prior, tokens).total


def test_predictable_tokens_are_those_below_the_threshold(prior: Prior) -> None:
    found = surprise(prior, tokens_of(prior))
    assert not predictable(found, 0.0).any()
    assert predictable(found, found.bits_L.max().item() + 1).all()
    middle = found.bits_L.median().item()
    assert predictable(found, middle).tolist() == [bits < middle for bits in found.bits_L.tolist()]


def test_what_cannot_be_drawn_is_refused(prior: Prior) -> None:
    tokens, nothing = tokens_of(prior), torch.zeros(prior.layout.num_tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="region: got no token"):
        redraw(prior, tokens, nothing)
    with pytest.raises(ValueError, match="labels: got 9, expected 0 to"):
        redraw(prior, tokens, ~nothing, label=9)
    for change, message in (({"vocab_size": 12}, "vocabulary size 12"), ({"image_size": (5, 5)}, "scales")):
        with pytest.raises(ValueError, match=f"tokens: got {message}"):
            surprise(prior, replace(tokens, **change))  # type: ignore[arg-type]


def test_a_region_holds_the_tokens_that_it_mostly_covers() -> None:
    """The oracle counts painted cells of a grid that all scales divide."""
    for layout in (PYRAMID, FLAT, TokenLayout.of(5, [(1, 1, 2), (3, 2, 2), (6, 4, 2)], (24, 16))):
        region = torch.rand(3, 4, generator=torch.Generator().manual_seed(4)) < 0.5
        fine = region.repeat_interleave(12 // 3, 0).repeat_interleave(12 // 4, 1)
        expected = []
        for grid in layout.grids:
            for cell in fine.reshape(grid[0], 12 // grid[0], grid[1], 12 // grid[1]).permute(0, 2, 1, 3).flatten(0, 1):
                expected += [cell.double().mean().item() >= 0.5] * math.prod(grid[2:])
        assert painted(layout, region).tolist() == expected
    assert not painted(PYRAMID, torch.zeros(3, 2, dtype=torch.bool)).any()
    one = torch.zeros(3, 2, dtype=torch.bool)
    one[2, 1] = True
    assert painted(PYRAMID, one).nonzero().flatten().tolist() == [8]  # not the coarse tokens above it


def test_a_picture_is_cut_to_the_size_of_the_prior() -> None:
    picture = torch.randint(256, (3, 48, 16), dtype=torch.uint8)
    assert torch.equal(fitted(picture, PYRAMID), picture[:, 12:36])


def test_each_kind_says_what_its_bits_mean_and_which_tokens_have_no_place() -> None:
    kinds = [meaning(make()) for make in (next_scale, next_token, masked)]
    assert len(set(kinds)) == 3
    sizes = {"width": 32, "layers": 1, "num_heads": 2, "patch_size": 4}
    assert no_region(TiTok(VectorQuantizer(16, 4), sizes, image_size=16, num_latent_tokens=5))
    assert not no_region(SimpleVQVAE(16, 8, 8))
