"""The parts of priors: drawing from logits, the cache of keys and values, rotary positions, token layouts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.priors import SamplingConfig, TokenLayout
from smalti.priors.cache import KeyValueCache
from smalti.priors.rotary import rotary_table, rotate
from smalti.priors.sampling import check_drawn, draw, guided

# ---- drawing ------------------------------------------------------------------------------------------------------


def frequencies(logits: torch.Tensor, config: SamplingConfig, n: int = 20_000) -> torch.Tensor:
    tokens, p = draw(logits.expand(n, 1, -1), config, torch.Generator().manual_seed(0))
    counts = torch.bincount(tokens.flatten(), minlength=logits.shape[-1]) / n
    for token in tokens.unique():
        assert p[tokens == token].unique().numel() == 1
    return counts


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(0)
        torch.testing.assert_close(
            frequencies(logits, SamplingConfig(temperature=temperature)), expected, atol=0.015, rtol=0
        )


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.integers(1, 9), st.floats(0.05, 0.99))
def test_top_k_and_top_p_keep_what_they_say(values: list[float], k: int, p: float) -> None:
    """Against a plain loop over the sorted probabilities."""
    logits = torch.tensor(values, dtype=torch.float32)
    probability = logits.softmax(0)
    order = probability.argsort(descending=True, stable=True)
    allowed, total = set(), 0.0
    for token in order.tolist():
        if total < p - 1e-6:
            allowed.add(token)
        total += probability[token].item()
    tie = {i for i in range(len(values)) for j in allowed if abs(probability[i] - probability[j]) < 1e-6}
    tokens, _ = draw(logits.expand(200, 1, -1), SamplingConfig(top_p=p), torch.Generator().manual_seed(0))
    assert set(tokens.flatten().tolist()) <= allowed | tie | {int(order[0])}
    tokens, _ = draw(logits.expand(200, 1, -1), SamplingConfig(top_k=k), torch.Generator().manual_seed(0))
    least = probability[order[min(k, len(values)) - 1]]
    assert (probability[tokens.flatten()] >= least - 1e-7).all()


def test_probabilities_returned_are_those_drawn_with() -> None:
    logits = torch.tensor([[[0.0, 1.0, 5.0, 4.0]]])
    tokens, p = draw(logits, SamplingConfig(top_k=2), torch.Generator().manual_seed(0))
    expected = logits[0, 0, [2, 3]].softmax(0)[0 if tokens.item() == 2 else 1]
    torch.testing.assert_close(p[0, 0], expected)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_extremes_of_the_random_number_draw_what_may_be_drawn(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last code of those that are left, never one of probability 0 and none beyond the vocabulary."""
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.full(shape, u, dtype=dtype))
    logits = torch.randn(1, 1, 16384, generator=torch.Generator().manual_seed(0))
    allowed = logits.flatten().topk(100).indices
    tokens, p = draw(logits, SamplingConfig(top_k=100))
    assert tokens.item() == (allowed.max() if u else allowed.min())
    assert p.item() > 0


def test_guidance_extrapolates_from_without_to_with_class() -> None:
    with_class, without = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    result = guided(torch.cat([with_class, without]), 1.5)
    torch.testing.assert_close(result, 2.5 * with_class - 1.5 * without)
    torch.testing.assert_close(guided(torch.cat([with_class, without]), 0.0), with_class)


@pytest.mark.parametrize(
    "change",
    [
        {"guidance": -1.0},
        {"guidance": 1e39},
        {"guidance": math.nan},
        {"temperature": 0.0},
        {"temperature": 1e-45},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 1.5},
        {"top_p": math.nan},
    ],
)
def test_sampling_settings_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SamplingConfig(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("config", [{}, {"top_k": 1}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 1e-6}])
def test_a_draw_without_a_probability_is_marked_and_refused(bad: float, config: dict[str, float]) -> None:
    """Rows of NaN, of one infinity, of nothing but -infinity; the token stays one that can be looked up."""
    logits = torch.randn(2, 3, 5)
    logits[1, 2] = bad
    tokens, p = draw(logits, SamplingConfig(**config))  # type: ignore[arg-type]
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 5
    assert not p[1, 2].isfinite()
    assert p.isfinite().sum() == 5
    with pytest.raises(ValueError, match="logits: got NaN or infinity"):
        check_drawn(p)


@pytest.mark.parametrize("temperature", [1e-6, 1e30])
def test_extreme_settings_still_draw_from_ordinary_logits(temperature: float) -> None:
    logits = torch.tensor([[[-80.0, 3.0, 80.0, 0.0]]])
    tokens, p = draw(guided(torch.cat([logits, -logits]), 1e6), SamplingConfig(temperature=temperature))
    check_drawn(p)
    assert temperature > 1 or tokens.item() == 2


# ---- cache --------------------------------------------------------------------------------------------------------


def test_cache_gives_back_all_that_was_stored_without_a_new_allocation() -> None:
    cache = KeyValueCache(3, (2, 4, 10, 8))
    assert cache.nbytes == KeyValueCache.bytes(3, 2, 10, 32) == 3 * 2 * 2 * 4 * 10 * 8 * 4
    layer = cache.layers[1]
    pieces = [torch.randn(2, 4, n, 8) for n in (1, 4, 5)]
    place = layer.keys.data_ptr()
    for i, piece in enumerate(pieces):
        keys, values = layer.append(piece, -piece)
        assert torch.equal(keys, torch.cat(pieces[: i + 1], dim=2))
        assert torch.equal(values, -keys)
        assert keys.data_ptr() == place
    assert cache.layers[0].length == 0


# ---- rotary positions ---------------------------------------------------------------------------------------------


def test_scores_depend_on_the_offset_in_rows_and_columns_alone() -> None:
    table = rotary_table((5, 6), 8)[1:].unflatten(0, (5, 6))
    q, k = torch.randn(8), torch.randn(8)

    def score(a: tuple[int, int], b: tuple[int, int]) -> torch.Tensor:
        turned = [rotate(x.expand(1, 1, 1, 8), table[place][None]) for x, place in ((q, a), (k, b))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score((0, 0), (2, 3)), score((2, 2), (4, 5)))
    assert not torch.isclose(score((0, 0), (2, 3)), score((0, 0), (3, 2)))
    torch.testing.assert_close(score((3, 3), (3, 3)), (q * k).sum())


def test_the_class_token_is_turned_to_zero_and_codes_of_one_place_share_angles() -> None:
    table = rotary_table((2, 2), 4, codes=3)
    assert table.shape == (13, 2, 2)
    assert not table[0].any()
    assert torch.equal(table[1], table[3])
    assert not torch.equal(table[3], table[4])
    with pytest.raises(ValueError, match="multiple of 4"):
        rotary_table((2, 2), 6)


# ---- layout -------------------------------------------------------------------------------------------------------


def test_layout_splits_and_knows_what_an_area_holds() -> None:
    layout = TokenLayout.of(7, [(1, 1), (2, 2), (4, 4)], (64, 64))
    assert (layout.num_tokens, layout.scale_lengths, layout.spans) == (21, (1, 4, 16), ((0, 1), (1, 5), (5, 21)))
    tokens = torch.arange(42).reshape(2, 21)
    assert torch.equal(torch.cat([scale.flatten(1) for scale in layout.split(tokens)], dim=1), tokens)
    lower_right = layout.split(layout.inside((0.5, 0.75, 1.0, 1.0))[None].long())
    assert lower_right[0].tolist() == [[[0]]]  # an eighth of the image
    assert lower_right[1].tolist() == [[[0, 0], [0, 1]]]  # half of the cell
    assert lower_right[2].tolist() == [[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]]
    tiny = layout.split(layout.inside((0.1, 0.1, 0.2, 0.3))[None].long())
    assert [scale.sum().item() for scale in tiny] == [0, 0, 2]  # every cell that it overlaps, of the finest scale alone
    assert layout.inside((0.0, 0.0, 1.0, 1.0)).all()
    deep = TokenLayout.of(7, [(1, 2, 3)], (8, 16))
    assert deep.codes_per_position == 3
    assert deep.inside((0.0, 0.0, 1.0, 0.5)).tolist() == [True] * 3 + [False] * 3


def test_layouts_of_another_tokenizer_are_refused_by_name() -> None:
    layout = TokenLayout.of(7, [(2, 2)], (8, 8), "a" * 64)
    layout.require(replace(layout, fingerprint=""), "tokens")
    for change, message in (
        ({"vocab_size": 8}, "vocabulary size 8, expected 7"),
        ({"grids": ((2, 3),)}, "scales"),
        ({"image_size": (9, 8)}, "scales"),
        ({"fingerprint": "b" * 64}, "fingerprint bbbb"),
    ):
        with pytest.raises(ValueError, match=message):
            layout.require(replace(layout, **change), "tokens")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="box"):
        layout.inside((0.5, 0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="grids"):
        TokenLayout.of(7, [], (8, 8))
