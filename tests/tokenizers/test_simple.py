"""SimpleVQVAE: images of any size to tokens and back, equal to the forward pass; options; refusals; training."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.quantizers import (
    DeadCodeRevival,
    EMAVectorQuantizer,
    KMeansInit,
    MultiScaleQuantizer,
    VectorQuantizer,
)
from smalti.tokenizers import SimpleVQVAE, pad_to_multiple

KINDS = {"one map": None, "multi-scale": (1, 2, 3, 5), "one scale of many": (4,)}
EACH = pytest.mark.parametrize("kind", KINDS)
SIDES = st.integers(1, 21)


@cache
def model(kind: str) -> SimpleVQVAE:
    """A small model in eval mode whose codes are as wide as its latents, so that many are in use."""
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(40, 6, 16, patch_nums=KINDS[kind])
    for codebook in [tokenizer.quantizer] if kind == "one map" else tokenizer.quantizer.quantizers:
        torch.nn.init.normal_(codebook.embedding.weight, std=0.3)
    return tokenizer.eval()


def picture(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- any image there and back ----------------------------------------------------------------------------------------


@EACH
@settings(max_examples=12)
@given(height=SIDES, width=SIDES, batch=st.integers(1, 3))
def test_decoding_the_tokens_is_the_forward_pass(kind: str, height: int, width: int, batch: int) -> None:
    tokenizer, image = model(kind), picture(batch, 3, height, width)
    with torch.no_grad():
        reconstruction, _, indices = tokenizer(image)
    assert reconstruction.shape == image.shape
    assert reconstruction.abs().max() <= 1
    tokens = tokenizer.encode(image)
    assert (tokens.image_size, tokens.vocab_size, tokens.image_dtype) == ((height, width), 40, torch.float32)
    assert tokens.grids[-1] == (-(-height // 4), -(-width // 4))
    for one, other in zip(tokens.indices, [indices] if isinstance(indices, Tensor) else indices, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(tokenizer.decode(tokens), reconstruction)
    pictures = tokenizer.progressive(tokens)
    assert len(pictures) == len(tokens.grids)
    assert torch.equal(pictures[-1], reconstruction)
    assert torch.equal(tokenizer.idxBl_to_img(tokenizer.img_to_idxBl(image)), reconstruction)


@EACH
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (16, 16), (17, 31), (64, 1)])
def test_uint8_in_and_uint8_out(kind: str, size: tuple[int, int]) -> None:
    tokenizer = model(kind)
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    decoded = tokenizer.decode(tokenizer.encode(image))
    assert decoded.dtype == torch.uint8
    with torch.no_grad():
        floats = tokenizer(image.float() / 127.5 - 1).reconstruction
    np.testing.assert_array_equal(decoded.numpy(), np.rint((floats.double().numpy() + 1) * 127.5).astype(np.uint8))
    assert all(one.dtype == torch.uint8 for one in tokenizer.progressive(tokenizer.encode(image)))


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_images_come_back_in_their_dtype(kind: str, dtype: torch.dtype) -> None:
    tokenizer, image = model(kind), picture(1, 3, 13, 10).to(dtype)
    tokens = tokenizer.encode(image)
    assert torch.equal(tokens.flatten(), tokenizer.encode(image.float()).flatten())
    decoded = tokenizer.decode(tokens)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, tokenizer.decode(replace(tokens, image_dtype=torch.float32)).to(dtype))


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype(kind: str, dtype: torch.dtype) -> None:
    tokenizer = copy.deepcopy(model(kind)).to(dtype)
    image = picture(1, 3, 9, 14)
    with torch.no_grad():
        expected = tokenizer(image.to(dtype)).reconstruction
    assert expected.dtype == dtype
    tokens = tokenizer.encode(image)
    torch.testing.assert_close(tokenizer.decode(tokens), expected.float(), atol=1e-2, rtol=0)
    as_bytes = tokenizer.encode(((image + 1) * 127.5).round().to(torch.uint8))
    assert tokenizer.decode(as_bytes).dtype == torch.uint8


@EACH
def test_under_autocast_tokens_still_decode_to_the_forward_pass(kind: str) -> None:
    tokenizer, image = model(kind), picture(2, 3, 12, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reconstruction = tokenizer(image).reconstruction
        decoded = tokenizer.decode(tokenizer.encode(image))
    torch.testing.assert_close(decoded, reconstruction.float())


@EACH
def test_images_of_a_batch_do_not_see_each_other(kind: str) -> None:
    tokenizer, images = model(kind), picture(3, 3, 11, 14)
    together = tokenizer.encode(images)
    for b in range(3):
        assert torch.equal(tokenizer.encode(images[b : b + 1]).flatten(), together[b].flatten())


@EACH
def test_coding_needs_no_gradient_and_changes_nothing(kind: str) -> None:
    tokenizer, image = copy.deepcopy(model(kind)).train(), picture(1, 3, 16, 16).requires_grad_()
    before = tokenizer.fingerprint
    tokens = tokenizer.encode(image)
    assert not tokenizer.decode(tokens).requires_grad
    assert not tokenizer.progressive(tokens)[0].requires_grad
    assert tokenizer.fingerprint == before


@given(SIDES, SIDES, st.sampled_from([1, 2, 4, 8, 16]))
def test_padding_reflects_or_repeats_the_edge(height: int, width: int, stride: int) -> None:
    image = picture(1, 2, height, width)
    expected = image.numpy()
    for axis in (2, 3):
        missing = -image.shape[axis] % stride
        widths = [(0, missing if a == axis else 0) for a in range(4)]
        expected = np.pad(expected, widths, mode="reflect" if missing < image.shape[axis] else "edge")
    np.testing.assert_array_equal(pad_to_multiple(image, stride).numpy(), expected)


# ---- refusals --------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize(
    ("image", "named"),
    [
        (torch.rand(1, 3, 8, 8) * 255, "expected -1 to 1"),
        (torch.rand(1, 3, 8, 8) - 1.5, "expected -1 to 1"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.full((1, 3, 8, 8), float("inf")), "inf"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), "int32"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bool), "bool"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "complex64"),
        (torch.zeros(1, 1, 8, 8), r"\(1, 1, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"\(1, 4, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"\(1, 3, 0, 8\)"),
        (torch.zeros(1, 8, 8, 3), r"\(1, 8, 8, 3\)"),
    ],
)
@pytest.mark.parametrize("reader", ["encode", "img_to_idxBl"])
@pytest.mark.usefixtures("unchecked")
def test_an_undeclared_range_or_shape_is_refused(kind: str, image: Tensor, named: str, reader: str) -> None:
    with pytest.raises(ValueError, match=named):
        getattr(model(kind), reader)(image)


@EACH
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "image", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8)]
)
def test_the_forward_pass_refuses_what_is_no_float_image(kind: str, image: Tensor) -> None:
    with pytest.raises(ValueError, match="image: "):
        model(kind)(image)


@EACH
@pytest.mark.parametrize("reader", ["decode", "progressive"])
def test_foreign_tokens_are_refused(kind: str, reader: str) -> None:
    tokenizer = model(kind)
    read = getattr(tokenizer, reader)
    tokens = tokenizer.encode(picture(2, 3, 12, 20))
    with pytest.raises(ValueError, match="41"):
        read(replace(tokens, vocab_size=41))
    with pytest.raises(ValueError, match="99"):
        read(replace(tokens, image_size=(99, 20)))
    for k in range(len(tokens.indices)):
        for value in (-1, 40, 10**12):
            maps = [scale.clone() for scale in tokens.indices]
            maps[k][0, 0, 0] = value
            with pytest.raises(ValueError, match=str(value)):
                read(replace(tokens, indices=tuple(maps)))
    with pytest.raises(ValueError, match=r"scales|indices"):
        read(replace(tokens, indices=(tokens.indices[-1], *tokens.indices)))
    with pytest.raises(ValueError, match="grid"):
        read(replace(tokens, indices=(*tokens.indices[:-1], tokens.indices[-1].flatten(1))))
    with pytest.raises(ValueError, match="grid"):
        read(replace(tokens, indices=(*tokens.indices[:-1], tokens.indices[-1].unsqueeze(-1))))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": 0}, "0"),
        ({"embedding_dim": 0}, "0"),
        ({"hidden_dim": 0}, "hidden_dim: got 0"),
        ({"num_stages": 0}, "num_stages: got 0"),
        ({"num_res_blocks": -1}, "num_res_blocks: got -1"),
        ({"image_channels": 0}, "image_channels: got 0"),
        ({"activation": "tanh"}, "activation: got 'tanh'"),
        ({"norm": "layer"}, "norm: got 'layer'"),
        ({"patch_nums": (3, 1)}, r"patch_nums: got \(3, 1\)"),
        ({"quantizer": VectorQuantizer(9, 6)}, "9"),
        ({"quantizer": VectorQuantizer(8, 5)}, "5"),
        ({"quantizer": VectorQuantizer(8, 6), "patch_nums": (1, 2)}, "patch_nums"),
    ],
)
def test_constructor_names_the_argument_and_its_value(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SimpleVQVAE(**{"vocab_size": 8, "embedding_dim": 6, "hidden_dim": 16, **changes})


# ---- options ---------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Callable[[], SimpleVQVAE]] = {
    "defaults": lambda: SimpleVQVAE(),
    "as in the issue": lambda: SimpleVQVAE(16, 64),
    "one stage": lambda: SimpleVQVAE(16, 8, 16, num_stages=1),
    "four stages": lambda: SimpleVQVAE(16, 8, 16, num_stages=4),
    "no blocks": lambda: SimpleVQVAE(16, 8, 16, num_res_blocks=0),
    "three blocks": lambda: SimpleVQVAE(16, 8, 16, num_res_blocks=3),
    "relu and batch norm": lambda: SimpleVQVAE(16, 8, 16, activation="relu", norm="batch"),
    "gelu and no norm": lambda: SimpleVQVAE(16, 8, 16, activation="gelu", norm="none"),
    "grey": lambda: SimpleVQVAE(16, 8, 16, image_channels=1),
    "four channels": lambda: SimpleVQVAE(16, 8, 16, image_channels=4),
    "odd widths": lambda: SimpleVQVAE(7, 5, 11),
    "smallest": lambda: SimpleVQVAE(1, 1, 1),
    "cosine": lambda: SimpleVQVAE(16, 8, 16, quantizer=VectorQuantizer(16, 8, metric="cosine")),
    "own ema": lambda: SimpleVQVAE(
        16,
        8,
        16,
        quantizer=EMAVectorQuantizer(16, 8, 1.0, init=KMeansInit(1, 2), revival=DeadCodeRevival(0.2), decay=0.5),
    ),
    "own scales": lambda: SimpleVQVAE(
        16, 8, 16, quantizer=MultiScaleQuantizer(16, 8, (1, 3), 0.7, num_phi=1, quantizer=EMAVectorQuantizer(16, 8))
    ),
}


@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_train_code_and_describe_themselves(make: Callable[[], SimpleVQVAE]) -> None:
    tokenizer = make()
    channels = tokenizer.image_channels
    assert tokenizer.stride == 2 ** tokenizer.config()["num_stages"]
    image = picture(2, channels, 19, 33)
    tokenizer(image)  # a training pass: initialisation and statistics
    output = tokenizer(image)
    (output.reconstruction.square().mean() + output.quantizer_output.loss).backward()
    for name, parameter in tokenizer.encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
    tokenizer.eval()
    tokens = tokenizer.encode(image)
    assert tokens.grids[-1] == (-(-19 // tokenizer.stride), -(-33 // tokenizer.stride))
    assert torch.equal(tokenizer.decode(tokens), tokenizer(image).reconstruction)
    assert tokenizer.vocab_size == tokenizer.quantizer.num_embeddings == tokens.vocab_size


def test_the_defaults_of_the_issue() -> None:
    tokenizer = SimpleVQVAE(16, 64)
    reconstruction, vq_loss, indices = tokenizer(torch.randn(1, 3, 64, 64))
    assert reconstruction.shape == (1, 3, 64, 64)
    assert vq_loss.shape == ()
    assert indices.shape == (1, 16, 16)  # stride 4 in all
    assert tokenizer.config()["hidden_dim"] == 128
    assert (SimpleVQVAE().vocab_size, SimpleVQVAE().quantizer.embedding_dim) == (16, 64)


# ---- training --------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("which", ["reconstruction", "vq_loss"])
def test_gradients_reach_the_encoder_from_both_losses(kind: str, which: str) -> None:
    tokenizer, image = copy.deepcopy(model(kind)).train(), picture(2, 3, 20, 20)
    tokenizer(image)
    output = tokenizer(image)
    loss = (
        (output.reconstruction - image).square().mean() if which == "reconstruction" else output.quantizer_output.loss
    )
    loss.backward()
    for name, parameter in tokenizer.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for name, parameter in tokenizer.decoder.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert reached == (which == "reconstruction"), name


def waves(count: int) -> Tensor:
    """Smooth pictures with something to learn in them."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 16), torch.linspace(0, 6, 16), indexing="ij")
    phase = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 6
    return torch.sin(x + phase) * torch.cos(y * 0.7 - phase)


def trained(kind: str, seed: int, steps: int) -> tuple[SimpleVQVAE, list[float]]:
    torch.manual_seed(seed)
    tokenizer, images, losses = SimpleVQVAE(32, 8, 32, patch_nums=KINDS[kind]), waves(8), []
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        reconstruction, vq_loss, _ = tokenizer(images)
        loss = (reconstruction - images).square().mean()
        (loss + vq_loss).backward()
        optimizer.step()
        losses.append(loss.item())
    return tokenizer, losses


@EACH
def test_a_few_steps_lower_the_loss(kind: str) -> None:
    tokenizer, losses = trained(kind, 0, 40)
    variance = waves(8).var().item()
    assert losses[-1] < 0.35 * losses[0]
    assert losses[-1] < 0.5 * variance  # better than painting the mean colour
    indices = tokenizer.eval().encode(waves(8)).flatten()
    assert indices.unique().numel() > 16


@EACH
def test_two_runs_with_one_seed_give_equal_weights(kind: str) -> None:
    fingerprints = [trained(kind, seed, 6)[0].fingerprint for seed in (1, 1, 2)]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]
