"""Grids of fixed codes: symmetric ones, in residual levels, on the meta device, under other default dtypes."""

import copy
import json
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch

from smalti.quantizers import (
    BinarySphericalQuantizer,
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    KMeansInit,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    PointwiseQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    quantizer_from_config,
)

# ---- symmetric grids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[2, 3, 4], [8, 5, 5, 5]])
def test_a_symmetric_grid_is_even_from_minus_one_to_one(levels: list[int]) -> None:
    fsq = FiniteScalarQuantizer(levels, symmetric=True)
    axes = [np.linspace(-1, 1, level) for level in levels]
    grid = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], axis=-1).reshape(-1, len(levels))
    np.testing.assert_allclose(fsq.get_codebook().numpy(), grid, atol=1e-6)  # the first component counts fastest
    z = torch.randn(5000, len(levels)) * 2
    nearest = np.abs(z.tanh().numpy()[:, None] * 1.001 - grid[None]).sum(axis=2).argmin(axis=1)
    assert np.array_equal(fsq(z).indices.numpy(), nearest)
    assert quantizer_from_config(fsq.config()).config() == fsq.config() == {
        "type": "FiniteScalarQuantizer", "levels": levels, "symmetric": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "shared", "heads"),
    [([4, 4], False, False), ([8, 2], True, False), ([4, 4], True, True), ([5, 4], False, True), ([3, 6], True, False)],
)
def test_residual_levels_use_every_value(levels: list[int], shared: bool, heads: bool) -> None:
    """And together they are one fine grid: the error is that of cells of 2 / (L - 1) / L^2, all of them in use."""

    def part() -> PointwiseQuantizer:
        fsq = FiniteScalarQuantizer(levels)
        return GroupedQuantizer([fsq], num_groups=2) if heads else fsq

    rq = ResidualQuantizer([part()] if shared else [part() for _ in range(3)], num_quantizers=3)
    z = torch.rand(4000, rq.embedding_dim) * 4 - 2
    output = rq(z)
    for q in range(3):
        codes = rq.part(q).lookup(output.indices[:, q])
        assert [codes[:, d].unique().numel() for d in range(codes.shape[1])] == levels * (2 if heads else 1)
    cells = torch.tensor([2 / (level - 1) / level**2 for level in levels * (2 if heads else 1)])
    error = (rq.project(z) - output.quantized).square().mean(dim=0)
    torch.testing.assert_close(error, cells.square() / 12, rtol=0.2, atol=0)


def paper_grid_residual(indices: np.ndarray, levels: list[int]) -> np.ndarray:
    """What a residual FSQ saved before symmetric grids decodes to: level q at (1 / (L − 1 + L % 2))^q."""
    digits = np.stack([indices // prod(levels[:d]) % levels[d] for d in range(len(levels))], axis=-1)
    half, scale = np.array([level // 2 for level in levels]), np.array([1 / (x - 1 + x % 2) for x in levels])
    values = (digits - half) / half * scale ** np.arange(indices.shape[1])[None, :, None]
    return values.sum(axis=1)


@pytest.mark.parametrize("shared", [False, True])
def test_residual_fsq_saved_before_decodes_as_before(shared: bool) -> None:
    part = {"type": "FiniteScalarQuantizer", "levels": [4, 5, 2]}
    saved = {
        "type": "ResidualQuantizer",
        "quantizers": [part] if shared else [part] * 3,
        "num_quantizers": 3,
        "quantizer_dropout": 0.0,
    }
    old = quantizer_from_config(saved)
    assert json.dumps(old.config()) == json.dumps(saved)  # so its fingerprint is what it was
    indices = torch.randint(0, 40, (50, 3))
    expected = paper_grid_residual(indices.numpy(), [4, 5, 2])
    np.testing.assert_allclose(old.decode(indices).numpy(), expected, atol=1e-6)
    new = ResidualQuantizer([FiniteScalarQuantizer([4, 5, 2]) for _ in range(3)])
    again = quantizer_from_config(new.config())
    assert again.config() == new.config()
    assert torch.equal(again.decode(indices), new.decode(indices))
    assert not torch.allclose(old.decode(indices), new.decode(indices))


def test_fsq_tells_two_to_the_24_levels_apart_and_takes_no_more() -> None:
    for symmetric in (False, True):
        fsq = FiniteScalarQuantizer([2**24, 3], symmetric=symmetric)
        indices = torch.cat([torch.randint(0, 3 * 2**24, (5000,)), torch.tensor([0, 1, 2**24 - 1, 3 * 2**24 - 1])])
        assert torch.equal(fsq.search(fsq.decode(indices)), indices)
    with pytest.raises(ValueError, match="levels"):
        FiniteScalarQuantizer([2**25])


# ---- sharing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ResidualQuantizer, GroupedQuantizer])
def test_one_object_for_several_parts_is_refused(cls: type[ResidualQuantizer] | type[GroupedQuantizer]) -> None:
    vq = VectorQuantizer(8, 4)
    tied = VectorQuantizer(8, 4)
    tied.embedding = vq.embedding
    for parts in (
        [vq] * 3,
        [vq, VectorQuantizer(8, 4), vq],
        [vq, tied],
        [GroupedQuantizer([vq]), GroupedQuantizer([vq])],
    ):
        with pytest.raises(ValueError, match=rf"got the same object twice.*num_\w+={len(parts)}"):
            cls(parts)
    count = {"num_quantizers" if cls is ResidualQuantizer else "num_groups": 3}
    shared = cls([vq], **count)
    again = quantizer_from_config(shared.config())
    again.load_state_dict(shared.state_dict())
    indices = torch.randint(0, 8, (5, 3))
    assert torch.equal(again.decode(indices), shared.decode(indices))


# ---- constants -------------------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[], Quantizer]] = {
    "vq": lambda: VectorQuantizer(16, 4, init=KMeansInit(batches=1)),
    "ema": lambda: EMAVectorQuantizer(16, 4, metric="cosine"),
    "simvq": lambda: SimVQ(16, 4),
    "ibq": lambda: IndexBackpropagationQuantizer(16, 4),
    "gumbel": lambda: GumbelQuantizer(16, 4),
    "fsq": lambda: FiniteScalarQuantizer([5, 4, 3, 2]),
    "lfq": lambda: LookupFreeQuantizer(4),
    "bsq": lambda: BinarySphericalQuantizer(4),
    "projected": lambda: ProjectedQuantizer(4, FiniteScalarQuantizer([5, 4])),
    "residual lfq": lambda: ResidualQuantizer([LookupFreeQuantizer(4)], num_quantizers=3, quantizer_dropout=0.5),
    "residual fsq": lambda: ResidualQuantizer([FiniteScalarQuantizer([4, 4, 4, 3])], num_quantizers=3),
    "multi-scale": lambda: MultiScaleQuantizer(16, 4, (1, 2, 3), quantizer=LookupFreeQuantizer(4)),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@EVERY
@pytest.mark.parametrize("assign", [False, True])
def test_built_on_the_meta_device_and_loaded(make: Callable[[], Quantizer], assign: bool) -> None:
    """What a state dict does not hold is right all the same, whatever the memory held before."""
    built = make().train()
    built(torch.randn(2, 4, 3, 3))
    with torch.device("meta"):
        empty = make()
    if not assign:
        empty.to_empty(device="cpu")
        for buffer in empty.buffers():
            buffer.fill_(7)
    assert empty.load_state_dict(built.state_dict(), assign=assign) == ([], [])
    z = torch.randn(2, 4, 3, 3)
    expected, output = built.eval()(z), empty.eval()(z)
    assert torch.equal(output.quantized, expected.quantized)
    torch.testing.assert_close(output.loss, expected.loss)
    assert torch.equal(empty.decode(built.encode(z)), expected.quantized)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_does_not_matter(make: Callable[[], Quantizer], dtype: torch.dtype) -> None:
    """Built and trained under another default, everything is as under fp32, to the bit."""

    def trained() -> Quantizer:
        torch.manual_seed(0)
        quantizer = make().train()
        for step in range(3):
            z = torch.randn(2, 4, 3, 3, dtype=torch.float32, requires_grad=True)
            torch.manual_seed(step)
            output = quantizer(z)
            (output.loss + output.quantized.square().mean()).backward()
        return quantizer

    expected = trained()
    torch.set_default_dtype(dtype)
    try:
        quantizer = trained()
        assert quantizer.eval()(torch.ones(1, 4, 3, 3)).quantized.dtype == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, quantizer.state_dict()[name]), name
        assert value.dtype == quantizer.state_dict()[name].dtype, name
    for name, parameter in expected.named_parameters():
        other = dict(quantizer.named_parameters())[name].grad
        assert (other is None) == (parameter.grad is None), name
        assert other is None or torch.equal(other, parameter.grad), name
    assert copy.deepcopy(quantizer).config() == expected.config()
