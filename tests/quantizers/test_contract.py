"""What every quantizer promises: masks, freezing, dtypes, refusals, saving, repeatability.

Longer than 400 lines because every promise is put to the same table of quantizers, `MAKERS`.
"""

import copy
import io
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smalti.quantizers import (
    DeadCodeRevival,
    EMAVectorQuantizer,
    KMeansInit,
    MultiScaleQuantizer,
    Quantizer,
    VectorQuantizer,
    quantizer_from_config,
)

ALIVE = {"init": KMeansInit(batches=2, iterations=3), "revival": DeadCodeRevival(0.3), "decay": 0.8}

MAKERS: dict[str, Callable[[], Quantizer]] = {
    "vector": lambda: VectorQuantizer(24, 6),
    "vector cosine alive": lambda: VectorQuantizer(24, 6, 0.5, metric="cosine", **ALIVE),
    "ema": lambda: EMAVectorQuantizer(24, 6),
    "ema alive": lambda: EMAVectorQuantizer(24, 6, beta=1.5, **ALIVE),
    "multi-scale": lambda: MultiScaleQuantizer(24, 6, (1, 2, 4)),
    "multi-scale ema alive": lambda: MultiScaleQuantizer(
        24, 6, (1, 3, 4), 0.1, num_phi=3, phi_ratio=0.3, quantizer=EMAVectorQuantizer(24, 6, **ALIVE)
    ),
    "multi-scale, a codebook a scale": lambda: MultiScaleQuantizer(
        24, 6, (1, 2, 4), num_codebooks=3, quantizer=EMAVectorQuantizer(24, 6, **ALIVE)
    ),
    "one scale": lambda: MultiScaleQuantizer(24, 6, (4,), num_phi=1, phi_ratio=0),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def spread(quantizer: Quantizer) -> Quantizer:
    """Codes as wide as the data, so that many are chosen."""
    for codebook in quantizer.quantizers if isinstance(quantizer, MultiScaleQuantizer) else [quantizer]:
        torch.nn.init.normal_(codebook.embedding.weight)
        if isinstance(codebook, EMAVectorQuantizer):
            codebook.embedding_sum.copy_(codebook.embedding.weight * codebook.cluster_size.unsqueeze(1))
    return quantizer


def scales(indices: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [indices] if isinstance(indices, Tensor) else list(indices)


def assert_same_indices(a: Tensor | tuple[Tensor, ...], b: Tensor | tuple[Tensor, ...]) -> None:
    for one, other in zip(scales(a), scales(b), strict=True):
        assert torch.equal(one, other)


def assert_same_state(a: Quantizer, b: Quantizer, tolerance: float = 0.0) -> None:
    state = b.state_dict()
    assert set(a.state_dict()) == set(state)
    for name, value in a.state_dict().items():
        torch.testing.assert_close(
            value, state[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# ---- one result, exact round trip ------------------------------------------------------------------------------------


@EVERY
def test_encode_and_decode_repeat_the_forward_pass(make: Callable[[], Quantizer]) -> None:
    quantizer, z = spread(make()).eval(), torch.randn(3, 6, 4, 4)
    quantized, loss, indices = quantizer(z)
    assert loss.isfinite()
    assert_same_indices(quantizer.encode(z), indices)
    assert torch.equal(quantizer.decode(indices), quantized)
    steps = quantizer.decode_progressive(indices)
    assert torch.equal(steps[-1], quantized)
    assert len(steps) == len(scales(indices))
    assert quantizer.get_codebook().shape[-2:] == (24, 6)


@EVERY
def test_the_loss_is_the_weighted_sum_of_its_terms(make: Callable[[], Quantizer]) -> None:
    output = make()(torch.randn(3, 6, 4, 4))
    assert set(output.terms) == set(output.weights)
    assert output.loss.item() == pytest.approx(sum(output.weights[n] * t.item() for n, t in output.terms.items()))
    assert output.weights["commitment"] in (0.25, 0.5, 1.5, 0.1)


@EVERY
def test_the_gradient_passes_straight_through(make: Callable[[], Quantizer]) -> None:
    quantizer, z, upstream = make(), torch.randn(3, 6, 4, 4, requires_grad=True), torch.randn(3, 6, 4, 4)
    quantizer(z).quantized.backward(upstream)
    if "cosine" in str(quantizer.config()):
        length = z.detach().norm(dim=1, keepdim=True)
        u = z.detach() / length
        upstream = (upstream - u * (u * upstream).sum(1, keepdim=True)) / length
    torch.testing.assert_close(z.grad, upstream)


@EVERY
def test_memory_layout_does_not_matter(make: Callable[[], Quantizer]) -> None:
    quantizer, z = spread(make()).eval(), torch.randn(3, 6, 4, 4)
    expected = quantizer(z)
    strided = torch.randn(3, 6, 8, 4)[:, :, ::2].copy_(z)
    for view in (z.to(memory_format=torch.channels_last), strided, z.transpose(2, 3).contiguous().transpose(2, 3)):
        output = quantizer(view)
        assert_same_indices(output.indices, expected.indices)
        torch.testing.assert_close(output.quantized, expected.quantized)
        torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])
def test_an_empty_batch_gives_an_empty_result(cls: type[Quantizer]) -> None:
    quantizer = cls(24, 6, **ALIVE)
    before = copy.deepcopy(quantizer)
    output = quantizer(torch.randn(0, 6, 4, 4))
    assert output.quantized.shape == (0, 6, 4, 4)
    assert output.loss.item() == 0
    assert_same_state(quantizer, before)


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_computes_in_fp32_and_returns_the_dtype_of_the_caller(
    make: Callable[[], Quantizer], dtype: torch.dtype
) -> None:
    quantizer, z = spread(make()), torch.randn(3, 6, 4, 4).to(dtype)
    reference = copy.deepcopy(quantizer)
    torch.manual_seed(1)
    output = quantizer(z.requires_grad_())
    torch.manual_seed(1)
    expected = reference(z.detach().float())
    assert output.quantized.dtype == dtype
    assert output.loss.dtype == torch.float32
    assert_same_indices(output.indices, expected.indices)
    assert torch.equal(output.quantized, expected.quantized.to(dtype))
    assert torch.equal(output.loss, expected.loss)
    assert_same_state(quantizer, reference)
    output.quantized.float().square().sum().backward()
    assert z.grad.dtype == dtype


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(make: Callable[[], Quantizer], dtype: torch.dtype) -> None:
    quantizer, z = spread(make()), torch.randn(3, 6, 4, 4)
    reference = copy.deepcopy(quantizer)
    torch.manual_seed(1)
    expected = reference(z)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype):
        output = quantizer(z)
        output_var = quantizer.eval().var_input(output.indices)
        output_decoded = quantizer.decode(output.indices)
        output_encoded = quantizer.encode(z)
    assert torch.equal(output.quantized, expected.quantized)
    assert torch.equal(output.loss, expected.loss)
    assert_same_state(quantizer, reference)
    assert torch.equal(output_decoded, reference.eval().decode(expected.indices))
    assert torch.equal(output_var, reference.var_input(expected.indices))
    assert_same_indices(output_encoded, reference.encode(z))


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("train", [True, False])
def test_survives_a_cast_of_the_whole_model(make: Callable[[], Quantizer], dtype: torch.dtype, train: bool) -> None:
    """`model.to(dtype)` must neither break the quantizer nor round its codes and counts."""
    quantizer, z = spread(make()).train(train), torch.randn(3, 6, 4, 4).to(dtype)
    reference = copy.deepcopy(quantizer)
    wrapper = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 1), quantizer).to(dtype)
    assert wrapper[0].weight.dtype == dtype
    torch.manual_seed(1)
    output = quantizer(z)
    torch.manual_seed(1)
    expected = reference(z.float())
    assert output.quantized.dtype == dtype
    assert_same_indices(output.indices, expected.indices)
    assert_same_state(quantizer, reference)


# ---- mask ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vector", "vector cosine alive", "ema", "ema alive"])
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("inf")])
def test_masked_padding_equals_padding_cut_out(name: str, padding: float) -> None:
    whole = spread(MAKERS[name]())
    cut = copy.deepcopy(whole)
    for step in range(4):  # initialisation, learning and revival included
        z = torch.randn(2, 6, 30)
        padded = torch.cat([z, torch.full((2, 6, 10), padding)], dim=2).requires_grad_()
        mask = torch.arange(40).expand(2, 40) < 30
        z.requires_grad_()
        torch.manual_seed(step)
        a = whole(padded, mask=mask)
        torch.manual_seed(step)
        b = cut(z)
        torch.testing.assert_close(a.loss, b.loss)
        assert torch.equal(a.indices[:, :30], b.indices)
        assert torch.equal(a.quantized[..., :30], b.quantized)
        assert int(a.indices.min()) >= 0
        assert int(a.indices.max()) < 24
        a.loss.backward()
        b.loss.backward()
        torch.testing.assert_close(padded.grad[..., :30], z.grad)
        if padding == padding and abs(padding) < 1e9:
            assert padded.grad[..., 30:].abs().max() == 0
        if whole.embedding.weight.grad is not None:
            torch.testing.assert_close(whole.embedding.weight.grad, cut.embedding.weight.grad)
        assert_same_state(whole, cut, tolerance=1e-5)


@EVERY
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("-inf")])
def test_whole_samples_masked_equal_whole_samples_left_out(make: Callable[[], Quantizer], padding: float) -> None:
    whole = spread(make())
    left_out = copy.deepcopy(whole)
    for step in range(4):
        z = torch.randn(3, 6, 4, 4)
        padded = torch.cat([z[:1], torch.full((1, 6, 4, 4), padding), z[1:]])
        mask = torch.tensor([True, False, True, True])[:, None, None].expand(4, 4, 4)
        torch.manual_seed(step)
        a = whole(padded, mask=mask)
        torch.manual_seed(step)
        b = left_out(z)
        torch.testing.assert_close(a.loss, b.loss)
        for one, other in zip(scales(a.indices), scales(b.indices), strict=True):
            assert torch.equal(one[[0, 2, 3]], other)
        torch.testing.assert_close(a.quantized[[0, 2, 3]], b.quantized)
        assert_same_state(whole, left_out, tolerance=1e-5)


@EVERY
def test_what_stands_in_the_padding_does_not_matter(make: Callable[[], Quantizer]) -> None:
    mask = torch.rand(3, 4, 4) > 0.4
    z = torch.randn(3, 6, 4, 4)
    results = []
    torch.manual_seed(7)
    start = spread(make())
    for padding in (0.0, -3.0, 1e6, float("nan")):
        quantizer = copy.deepcopy(start)
        torch.manual_seed(7)
        padded = torch.where(mask.unsqueeze(1), z, torch.tensor(padding))
        output = quantizer(padded, mask=mask)
        results.append((quantizer, output))
    first, expected = results[0]
    for quantizer, output in results[1:]:
        assert torch.equal(output.loss, expected.loss)
        assert torch.equal(output.quantized.movedim(1, -1)[mask], expected.quantized.movedim(1, -1)[mask])
        assert_same_state(quantizer, first)


@EVERY
def test_a_full_mask_is_no_mask_and_an_empty_one_learns_nothing(make: Callable[[], Quantizer]) -> None:
    with_mask = spread(make())
    without, before = copy.deepcopy(with_mask), copy.deepcopy(with_mask)
    z = torch.randn(3, 6, 4, 4)
    empty = with_mask(z.requires_grad_(), mask=torch.zeros(3, 4, 4, dtype=torch.bool))
    assert empty.loss.item() == 0
    empty.loss.backward()
    assert z.grad is None or z.grad.abs().max() == 0
    assert_same_state(with_mask, before)
    torch.manual_seed(1)
    a = with_mask(z, mask=torch.ones(3, 4, 4, dtype=torch.bool))
    torch.manual_seed(1)
    b = without(z)
    torch.testing.assert_close(a.loss, b.loss)
    assert_same_indices(a.indices, b.indices)
    assert_same_state(with_mask, without, tolerance=1e-6)


# ---- freeze ----------------------------------------------------------------------------------------------------------


@EVERY
def test_freeze_holds_everything_fixed(make: Callable[[], Quantizer]) -> None:
    quantizer = spread(make())
    optimizer = torch.optim.AdamW(
        [p for p in quantizer.parameters() if p.requires_grad] or [torch.nn.Parameter(torch.zeros(1))],
        lr=0.1,
        weight_decay=0.5,
    )
    z = torch.randn(3, 6, 4, 4, requires_grad=True)
    (quantizer(z).loss + 0 * sum(p.sum() for p in optimizer.param_groups[0]["params"])).backward()
    quantizer.freeze()  # after a backward pass: what it left must not be applied either
    before = copy.deepcopy(quantizer)
    for _ in range(4):
        optimizer.step()
        output = quantizer(z)
        (output.loss + output.quantized.sum()).backward()
    assert_same_state(quantizer, before)
    assert z.grad.abs().sum() > 0  # but the encoder still learns
    assert output.loss.item() > 0


@EVERY
def test_unfreezing_goes_on_where_freezing_stopped(make: Callable[[], Quantizer]) -> None:
    thawed = spread(make())
    never = copy.deepcopy(thawed)
    thawed.freeze()
    thawed.freeze()
    thawed(torch.randn(3, 6, 4, 4))
    thawed = copy.deepcopy(thawed)
    thawed.unfreeze()
    z = torch.randn(3, 6, 4, 4, requires_grad=True)
    for quantizer in (thawed, never):
        torch.manual_seed(1)
        quantizer(z).loss.backward()
    assert_same_state(thawed, never)
    for a, b in zip(thawed.parameters(), never.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


@EVERY
def test_freezing_survives_a_copy_and_train_mode(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    quantizer.freeze()
    twin = copy.deepcopy(quantizer).eval().train()
    before = copy.deepcopy(twin)
    twin(torch.randn(3, 6, 4, 4))
    assert_same_state(twin, before)


# ---- refusals --------------------------------------------------------------------------------------------------------


def maps(quantizer: Quantizer) -> list[Tensor]:
    return scales(quantizer.encode(torch.randn(2, 6, 4, 4)))


def given_to(quantizer: Quantizer, scale_maps: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return tuple(scale_maps) if isinstance(quantizer, MultiScaleQuantizer) else scale_maps[0]


@EVERY
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda i: i.index_fill(0, torch.tensor([0]), 24), "24"),
        (lambda i: i.index_fill(0, torch.tensor([1]), -1), "-1"),
        (lambda i: i.index_fill(0, torch.tensor([1]), 2**40), str(2**40)),
        (lambda i: i.float(), "float32"),
        (lambda i: i.bool(), "bool"),
        (lambda i: i.to(torch.complex64), "complex64"),
    ],
)
@pytest.mark.parametrize("reader", ["decode", "decode_progressive", "var_input"])
def test_bad_indices_are_refused_with_the_value(
    make: Callable[[], Quantizer], spoil: Callable[[Tensor], Tensor], named: str, reader: str
) -> None:
    quantizer = make()
    for k in range(len(maps(quantizer))):
        bad = maps(quantizer)
        bad[k] = spoil(bad[k])
        with pytest.raises(ValueError, match=named):
            getattr(quantizer, reader)(given_to(quantizer, bad))


@pytest.mark.parametrize("reader", ["decode", "decode_progressive", "var_input"])
@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [(2, 1), (2, 4), (2, 16)],  # flat
        [(2, 1, 1), (1, 2, 2), (2, 4, 4)],  # another batch size
        [(2, 0, 0), (2, 2, 2), (2, 4, 4)],  # nothing at one scale
        [(2, 1, 1), (2, 2, 2), (2, 0, 4)],
        [(2, 1, 1, 1), (2, 2, 2), (2, 4, 4)],
    ],
)
def test_wrong_shapes_of_scales_are_refused(shapes: list[tuple[int, ...]], reader: str) -> None:
    quantizer = MAKERS["multi-scale"]()
    with pytest.raises(ValueError, match="indices"):
        getattr(quantizer, reader)(tuple(torch.zeros(shape, dtype=torch.int64) for shape in shapes))


@pytest.mark.parametrize("sides", [(1, 4), (1, 2, 3, 4), (4,)], ids=str)
@pytest.mark.parametrize("reader", ["decode", "decode_progressive", "var_input"])
def test_another_number_of_scales_needs_one_codebook_for_all(sides: tuple[int, ...], reader: str) -> None:
    maps = tuple(torch.zeros(2, side, side, dtype=torch.int64) for side in sides)
    own = MultiScaleQuantizer(16, 4, (1, 2, 4), num_codebooks=3)
    with pytest.raises(ValueError, match=f"indices: got {len(sides)} scales, expected 3"):
        getattr(own, reader)(maps)
    getattr(MultiScaleQuantizer(16, 4, (1, 2, 4)), reader)(maps)


def test_many_maps_for_one_scale_are_refused() -> None:
    one = torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="tuple"):
        MAKERS["vector"]().decode((one, one))


@EVERY
@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (3, 7, 4, 4), (6,)])
@pytest.mark.parametrize("reader", ["forward", "encode"])
@pytest.mark.usefixtures("unchecked")
def test_latents_of_a_wrong_shape_are_refused(
    make: Callable[[], Quantizer], shape: tuple[int, ...], reader: str
) -> None:
    with pytest.raises(ValueError, match=r"z: .*" + str(shape[-1])):
        getattr(make(), reader)(torch.randn(shape))


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_latents_that_are_not_floats_are_refused(make: Callable[[], Quantizer]) -> None:
    with pytest.raises(ValueError, match="int64"):
        make()(torch.zeros(3, 6, 4, 4, dtype=torch.int64))


@EVERY
@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(3, 4, 4),
        torch.ones(3, 4, 4, dtype=torch.int64),
        torch.ones(3, 4, dtype=torch.bool),
        torch.ones(3, 1, 4, 4, dtype=torch.bool),
        torch.ones(2, 4, 4, dtype=torch.bool),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_masks_of_a_wrong_dtype_or_shape_are_refused(make: Callable[[], Quantizer], mask: Tensor) -> None:
    with pytest.raises(ValueError, match="mask"):
        make()(torch.randn(3, 6, 4, 4), mask=mask)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_embeddings": 0}, "num_embeddings: got 0"),
        ({"embedding_dim": -2}, "embedding_dim: got -2"),
        ({"beta": -0.1}, "beta: got -0.1"),
        ({"beta": float("nan")}, "beta: got nan"),
        ({"metric": "manhattan"}, "metric: got 'manhattan'"),
        ({"decay": 1.0}, "decay: got 1.0"),
        ({"decay": -0.5}, "decay: got -0.5"),
    ],
)
def test_constructors_name_the_argument_and_its_value(cls: type[Quantizer], changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        cls(**{"num_embeddings": 8, "embedding_dim": 4, **changes})


# ---- saving ----------------------------------------------------------------------------------------------------------


def trained(make: Callable[[], Quantizer]) -> Quantizer:
    quantizer = make()
    optimizer = torch.optim.Adam([p for p in quantizer.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        loss = quantizer(torch.randn(3, 6, 4, 4, requires_grad=True)).loss
        loss.backward()
        optimizer.step()
    return quantizer


@EVERY
def test_configuration_and_weights_rebuild_the_quantizer(make: Callable[[], Quantizer]) -> None:
    quantizer = trained(make)
    config = json.loads(json.dumps(quantizer.config()))
    rebuilt = quantizer_from_config(config)
    assert type(rebuilt) is type(quantizer)
    assert rebuilt.config() == quantizer.config() == config
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    rebuilt.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3):  # and it goes on in the same way: initialisation, averages and revival are in the state
        z = torch.randn(3, 6, 4, 4)
        torch.manual_seed(step)
        a = quantizer(z)
        torch.manual_seed(step)
        b = rebuilt(z)
        assert torch.equal(a.quantized, b.quantized)
        assert torch.equal(a.loss, b.loss)
        assert_same_state(quantizer, rebuilt)


@EVERY
def test_a_copy_is_equal_and_separate(make: Callable[[], Quantizer]) -> None:
    quantizer = trained(make)
    twin = copy.deepcopy(quantizer)
    assert_same_state(quantizer, twin)
    before = copy.deepcopy(twin.state_dict())
    for tensor in quantizer.state_dict().values():
        tensor.zero_()
    for name, value in twin.state_dict().items():
        assert torch.equal(value, before[name])


@EVERY
def test_two_runs_with_one_seed_are_equal(make: Callable[[], Quantizer]) -> None:
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(trained(make))
    assert_same_state(runs[0], runs[1])
    assert any(
        not torch.equal(a, b) for a, b in zip(runs[0].state_dict().values(), runs[2].state_dict().values(), strict=True)
    )


SMALL = {"num_embeddings": 4, "embedding_dim": 2}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "type"),
        ({"type": "FancyQuantizer", **SMALL}, "FancyQuantizer"),
        ({"type": ["VectorQuantizer"], **SMALL}, "type"),
        ({"type": "VectorQuantizer"}, "num_embeddings"),
        ({"type": "VectorQuantizer", **SMALL, "patch_nums": [1]}, "patch_nums"),
        ({"type": "EMAVectorQuantizer", **SMALL, "options": {}}, "options"),
        ({"type": "VectorQuantizer", **SMALL, "beta": {}}, "beta"),
        ({"type": "VectorQuantizer", **SMALL, "init": {"bathces": 3}}, "bathces"),
        ({"type": "MultiScaleQuantizer", **SMALL, "patch_nums": [1], "quantizer": {"type": "X"}}, "X"),
    ],
)
def test_configurations_that_describe_nothing_are_refused(config: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        quantizer_from_config(config)
