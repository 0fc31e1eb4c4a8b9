"""Tokens: to one sequence and back, for any grids, and what they refuse."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.tokenizers import SimpleVQVAE, Tokens

GRIDS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6)


def made(grids: list[tuple[int, ...]], batch: int = 2, dtype: torch.dtype = torch.float32) -> Tokens:
    generator = torch.Generator().manual_seed(len(grids))
    maps = tuple(torch.randint(0, 50, (batch, *grid), generator=generator) for grid in grids)
    return Tokens(maps, (17, 23), 50, dtype)


@given(GRIDS, st.integers(0, 4), st.sampled_from([torch.uint8, torch.float32, torch.float16]))
def test_flatten_and_back(grids: list[tuple[int, int]], batch: int, dtype: torch.dtype) -> None:
    tokens = made(grids, batch, dtype)
    sequence = tokens.flatten()
    assert sequence.dtype == torch.int64
    assert sequence.shape == (batch, tokens.num_tokens)
    assert tokens.num_tokens == sum(h * w for h, w in grids)
    assert len(tokens) == batch
    back = Tokens.unflatten(sequence, tokens.grids, tokens.image_size, tokens.vocab_size, tokens.image_dtype)
    assert back.grids == tokens.grids == tuple(grids)
    assert (back.image_size, back.vocab_size, back.image_dtype) == ((17, 23), 50, dtype)
    for one, other in zip(back.indices, tokens.indices, strict=True):
        assert torch.equal(one, other)


@given(GRIDS, st.integers(1, 4))
def test_the_order_is_coarse_to_fine_and_raster_within(grids: list[tuple[int, int]], batch: int) -> None:
    tokens = made(grids, batch)
    for b in range(batch):
        walked = [
            int(scale[b, y, x])
            for scale in tokens.indices
            for y in range(scale.shape[1])
            for x in range(scale.shape[2])
        ]
        assert tokens.flatten()[b].tolist() == walked


@given(GRIDS, st.integers(1, 4))
def test_one_image_of_many(grids: list[tuple[int, int]], batch: int) -> None:
    tokens = made(grids, batch, torch.uint8)
    for b in range(batch):
        one = tokens[b]
        assert len(one) == 1
        assert (one.image_size, one.vocab_size, one.image_dtype) == ((17, 23), 50, torch.uint8)
        np.testing.assert_array_equal(one.flatten().numpy(), tokens.flatten()[b : b + 1].numpy())
    assert torch.equal(tokens[-1].flatten(), tokens[batch - 1].flatten())
    assert [len(one) for one in tokens] == [1] * batch  # iteration ends
    with pytest.raises(IndexError):
        tokens[batch]
    for images in (slice(0, 2), slice(None), slice(None, None, 2), slice(-1, None), slice(batch, None)):
        some = tokens[images]
        assert torch.equal(some.flatten(), tokens.flatten()[images])
        assert (some.grids, some.image_size, some.vocab_size) == (tokens.grids, (17, 23), 50)


def test_moved_to_another_device_only_the_indices_move() -> None:
    moved = made([(1, 1), (2, 3)], dtype=torch.uint8).to("meta")
    assert {scale.device.type for scale in moved.indices} == {"meta"}
    assert (moved.grids, moved.image_size, moved.vocab_size) == (((1, 1), (2, 3)), (17, 23), 50)
    assert moved.image_dtype == torch.uint8


def test_grids_of_any_number_of_axes() -> None:
    tokens = made([(3,), (2, 2, 2)])
    assert tokens.grids == ((3,), (2, 2, 2))
    assert Tokens.unflatten(tokens.flatten(), tokens.grids, (1, 1), 50).grids == tokens.grids


def test_two_tokens_can_be_compared_without_an_accident() -> None:
    assert made([(2, 2)]) != "tokens"
    assert isinstance(made([(2, 2)]) == made([(2, 2)]), bool)


@pytest.mark.parametrize("length", [0, 4, 6, 10])
def test_a_sequence_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length}"):
        Tokens.unflatten(torch.zeros(2, length, dtype=torch.int64), ((1, 1), (2, 2)), (4, 4), 16)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("indices", "dtype", "named"),
    [
        ((), torch.uint8, "indices"),
        ((torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(3, 2, 2, dtype=torch.int64)), torch.uint8, "3"),
        ((torch.zeros(2, 2, 2),), torch.uint8, "float32"),
        ((torch.zeros(2, dtype=torch.int64),), torch.uint8, "2"),
        ((torch.zeros(2, 2, 2, dtype=torch.int64),), torch.int32, "int32"),
        ((torch.zeros(2, 2, 2, dtype=torch.int64),), torch.bool, "bool"),
    ],
)
def test_what_cannot_be_tokens_is_refused(indices: tuple, dtype: torch.dtype, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Tokens(indices, (4, 4), 16, dtype)


# ---- who made them --------------------------------------------------------------------------------------------------


def small(seed: int) -> SimpleVQVAE:
    torch.manual_seed(seed)
    return SimpleVQVAE(16, 4, 4, patch_nums=(1, 2)).eval()


def test_tokens_of_another_model_of_equal_sizes_are_refused() -> None:
    model, other, image = small(0), small(1), torch.rand(1, 3, 8, 8) * 2 - 1
    tokens = model.encode(image)
    assert tokens.fingerprint == tokens[0].fingerprint == tokens.to("cpu").fingerprint == model.fingerprint
    model.decode(tokens)
    copy.deepcopy(model).decode(tokens)
    for decode, made in ((other.decode, tokens), (other.idxBl_to_img, model.img_to_idxBl(image))):
        with pytest.raises(
            ValueError, match=f"got those of model {model.fingerprint[:12]}…, expected those of this model"
        ):
            decode(made)
    other.decode(replace(tokens, fingerprint=""))  # said so, one may
    other.load_state_dict(model.state_dict())
    other.decode(tokens)


def test_a_model_that_has_changed_is_another_one_and_a_cast_one_is_not() -> None:
    model, image = small(0), torch.rand(1, 3, 8, 8) * 2 - 1
    tokens = model.encode(image)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    assert model.encode(image).fingerprint == model.fingerprint != tokens.fingerprint
    with pytest.raises(ValueError, match="got those of model"):
        model.decode(tokens)
    tokens = model.encode(image)
    model.quantizer.get_parameter("quantizers.0.embedding.weight").data.mul_(2)  # unseen by torch's version counter
    assert model.encode(image).fingerprint == model.fingerprint != tokens.fingerprint
    assert model.train().encode(image).fingerprint == ""
    model.decode(tokens)  # what trains changes all the time
    same = small(0).double()
    same.decode(tokens)
    assert same.encode(image.double()).fingerprint == ""
