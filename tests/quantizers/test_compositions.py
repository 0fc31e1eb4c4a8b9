"""The contract of every quantizer, over the cross product of base x heads x projection x wrapper.

A row of the product is one composition, such as residual(projected(two heads of LFQ)). The round trip of indices is
checked on half of the rows, in which any three choices meet. The other properties are checked on a part in which every
base meets both projections, and two or three wrappers and heads. Latents have changing ranks and sizes. What is
particular to one quantizer stands in the other files.
"""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_interpreter import CleanInterpreter
from torch import Tensor

from smalti.quantizers import (
    BinarySphericalQuantizer,
    DeadCodeRevival,
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

K = 16
CHANNELS = 4
LIVING: dict[str, Any] = {"init": KMeansInit(batches=1, iterations=2), "revival": DeadCodeRevival()}

BASES: dict[str, Callable[[int], PointwiseQuantizer]] = {
    "vq": lambda dim: VectorQuantizer(K, dim),
    "vq-cosine-rotation": lambda dim: VectorQuantizer(K, dim, metric="cosine", gradient="rotation", **LIVING),
    "ema": lambda dim: EMAVectorQuantizer(K, dim, **LIVING),
    "ema-cosine": lambda dim: EMAVectorQuantizer(K, dim, metric="cosine"),
    "simvq": lambda dim: SimVQ(K, dim, gradient="rotation"),
    "ibq": lambda dim: IndexBackpropagationQuantizer(K, dim),
    "gumbel": lambda dim: GumbelQuantizer(K, dim),
    "fsq": lambda dim: FiniteScalarQuantizer([5, 4, 3, 2][:dim]),
    "lfq": lambda dim: LookupFreeQuantizer(dim, group_size=3),
    "bsq": lambda dim: BinarySphericalQuantizer(dim),
}
HEADS = ("one head", "two heads", "two shared heads")
PROJECTIONS = ("direct", "projected")
WRAPPERS = ("bare", "residual", "shared residual", "multi-scale", "codebook a scale")

PRODUCT = [
    (base, heads, projection, wrapper)
    for (b, base), (h, heads), (p, projection), (w, wrapper) in itertools.product(
        enumerate(BASES), enumerate(HEADS), enumerate(PROJECTIONS), enumerate(WRAPPERS)
    )
    if (b + h + p + w) % 2 == 0  # any three of base, heads, projection and wrapper still meet
]
PART = [
    (base, HEADS[(b + w) // 2 % len(HEADS)], PROJECTIONS[(b + w) // 2 % len(PROJECTIONS)], wrapper)
    for b, base in enumerate(BASES)
    for w, wrapper in enumerate(WRAPPERS)
    if (b + w) % 2 == 0
]


def compose(base: str, heads: str, projection: str, wrapper: str) -> Quantizer:
    """One row of the product, for latents with 4 channels."""

    def core() -> PointwiseQuantizer:
        inner_dim = 2 if projection == "projected" else CHANNELS
        make = BASES[base]
        if heads == "one head":
            inner = make(inner_dim)
        elif heads == "two heads":
            inner = GroupedQuantizer([make(inner_dim // 2), make(inner_dim // 2)])
        else:
            inner = GroupedQuantizer([make(inner_dim // 2)], num_groups=2)
        return ProjectedQuantizer(CHANNELS, inner) if projection == "projected" else inner

    if wrapper == "residual":
        return ResidualQuantizer([core(), core(), core()], quantizer_dropout=0.5)
    if wrapper == "shared residual":
        return ResidualQuantizer([core()], num_quantizers=3)
    if wrapper in ("multi-scale", "codebook a scale"):
        inner, codebooks = core(), 1 if wrapper == "multi-scale" else 3
        return MultiScaleQuantizer(
            inner.num_embeddings, CHANNELS, (1, 2, 3), num_phi=2, num_codebooks=codebooks, quantizer=inner
        )
    return core()


def latent(quantizer: Quantizer, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """A latent of a rank and size that depend on the seed; two spatial axes where the quantizer needs them."""
    generator = torch.Generator().manual_seed(seed)
    rank = 2 if isinstance(quantizer, MultiScaleQuantizer) else seed % 4
    spatial = [int(torch.randint(1, 6, (), generator=generator)) for _ in range(rank)]
    return (torch.randn(3, CHANNELS, *spatial, generator=generator) * scale).to(dtype)


def maps(indices: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (indices,) if isinstance(indices, Tensor) else indices


def states_equal(a: Quantizer, b: Quantizer) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def trained(quantizer: Quantizer, steps: int = 3) -> Quantizer:
    """A few steps of gradient and of whatever else the quantizer learns by, then eval mode."""
    parameters = [p for p in quantizer.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
    for step in range(steps):
        z = latent(quantizer, seed=4 * step + 3).requires_grad_()
        output = quantizer.train()(z)
        (output.loss + output.quantized.float().square().mean()).backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
    return quantizer.eval()


def named(rows: list[tuple[str, str, str, str]]) -> dict[str, Any]:
    return {"argvalues": rows, "ids": ["/".join(row).replace(" ", "-") for row in rows]}


@pytest.mark.parametrize("row", **named(PRODUCT))
def test_what_comes_out_decodes_from_its_indices(row: tuple[str, str, str, str]):
    torch.manual_seed(0)
    quantizer = trained(compose(*row), steps=2)
    code_shape = quantizer.code_shape if isinstance(quantizer, PointwiseQuantizer) else quantizer.part(0).code_shape
    for seed in (4, 6):
        z = latent(quantizer, seed + PRODUCT.index(row) // 2 % 2)
        output = quantizer(z)
        torch.testing.assert_close(quantizer.decode(output.indices), output.quantized, rtol=0, atol=1e-6)
        assert output.quantized.shape == z.shape
        # shapes and ranges as documented
        grids = [z.shape[2:]] if isinstance(output.indices, Tensor) else [i.shape[1:3] for i in output.indices]
        for indices, again, grid in zip(maps(output.indices), maps(quantizer.encode(z)), grids, strict=True):
            assert indices.dtype == torch.int64
            assert indices.shape == (z.shape[0], *grid, *code_shape)
            assert indices.min() >= 0
            assert indices.max() < quantizer.num_embeddings
            assert torch.equal(indices, again)
        torch.testing.assert_close(quantizer.decode_progressive(output.indices)[-1], quantizer.decode(output.indices))
        assert quantizer.var_input(output.indices).shape[::2] == (z.shape[0], CHANNELS)
        # the named terms are unweighted and sum up to the loss
        assert output.terms.keys() == output.weights.keys()
        total = sum(output.weights[name] * float(term.detach()) for name, term in output.terms.items())
        assert float(output.loss.detach()) == pytest.approx(total, rel=1e-5, abs=1e-7)


@pytest.fixture(**{("params" if name == "argvalues" else name): value for name, value in named(PART).items()})
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    return compose(*request.param)


def test_wrong_indices_are_refused(quantizer: Quantizer):
    indices = maps(quantizer.encode(latent(quantizer, 3)))

    def refused(last: Tensor, match: str) -> None:
        changed = (*indices[:-1], last)
        with pytest.raises(ValueError, match=match):
            quantizer.decode(changed if isinstance(quantizer, MultiScaleQuantizer) else last)

    refused(indices[-1] + quantizer.num_embeddings, f"expected 0 to {quantizer.num_embeddings - 1}")
    refused(-1 - indices[-1], "got the value -")
    if indices[-1].dim() > 4 or (indices[-1].shape[1:] and not isinstance(quantizer, PointwiseQuantizer)):
        refused(indices[-1].flatten(), "shape")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_give_the_indices_of_fp32(quantizer: Quantizer, dtype: torch.dtype):
    trained(quantizer)
    z = latent(quantizer, seed=2, dtype=dtype)
    expected = quantizer(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(z)
        decoded = quantizer.decode(output.indices)
    assert output.quantized.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(maps(output.indices), maps(expected.indices), strict=True))
    assert torch.equal(output.quantized, expected.quantized.to(dtype))
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, expected.quantized)
    torch.testing.assert_close(output.loss, expected.loss)


def test_the_latent_gets_a_gradient_and_every_parameter_is_reached(quantizer: Quantizer):
    z = latent(quantizer, seed=3).requires_grad_()
    for _ in range(6):  # quantizer dropout may hide a level in one pass
        output = quantizer.train()(z)
        (output.loss + (output.quantized * torch.randn_like(z)).sum()).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_freeze_holds_everything(quantizer: Quantizer):
    trained(quantizer)
    quantizer.freeze()
    before = copy.deepcopy(quantizer)
    z = latent(quantizer, seed=6).requires_grad_()
    for _ in range(2):
        output = quantizer.train()(z)
        (output.loss + output.quantized.sum()).backward()
    assert states_equal(quantizer, before)
    assert all(p.grad is None and not p.requires_grad for p in quantizer.parameters())
    assert z.grad is not None  # the encoder still learns


def test_eval_changes_nothing_and_draws_nothing(quantizer: Quantizer):
    trained(quantizer)
    before, state = copy.deepcopy(quantizer), torch.get_rng_state()
    first, second = (quantizer(latent(quantizer, seed=5)) for _ in range(2))
    quantizer.train().encode(latent(quantizer, seed=5))
    quantizer.decode(first.indices)
    assert states_equal(quantizer, before)
    assert torch.equal(first.quantized, second.quantized)
    assert torch.equal(torch.get_rng_state(), state)


def test_masked_padding_leaves_no_trace(quantizer: Quantizer):
    """What stands at invalid positions, NaN included, changes neither loss, nor statistics, nor codebook."""
    z = latent(quantizer, seed=3)
    mask = torch.rand(z.shape[0], *z.shape[2:], generator=torch.Generator().manual_seed(1)) > 0.3
    paddings = [torch.zeros_like(z), torch.full_like(z, 1e3), torch.full_like(z, torch.nan)]
    results = []
    for padding in paddings:
        copied = copy.deepcopy(quantizer).train()
        filled = torch.where(mask.unsqueeze(1), z, padding).requires_grad_()
        torch.manual_seed(5)
        outputs = [copied(filled, mask=mask) for _ in range(2)]
        valid = outputs[-1].quantized.movedim(1, -1)[mask]
        grad = torch.autograd.grad(outputs[-1].loss + valid.sum(), filled, allow_unused=True)[0]
        results.append((copied, outputs[-1], valid, grad.movedim(1, -1)[mask]))
    for copied, output, valid, grad in results[1:]:
        assert states_equal(copied, results[0][0])
        assert torch.equal(output.loss, results[0][1].loss)
        assert torch.equal(valid, results[0][2])
        assert torch.equal(grad, results[0][3])


def test_padding_cut_out_equals_padding_masked(quantizer: Quantizer):
    if isinstance(quantizer, MultiScaleQuantizer):
        pytest.skip("scales of another grid are other scales")
    z, padding = torch.randn(2, CHANNELS, 4, 3), torch.randn(2, CHANNELS, 4, 2)
    mask = torch.cat([torch.ones(2, 4, 3), torch.zeros(2, 4, 2)], dim=2).bool()
    cut, masked = quantizer.train(), copy.deepcopy(quantizer).train()
    for _ in range(3):
        torch.manual_seed(5)
        expected = cut(z)
        torch.manual_seed(5)
        output = masked(torch.cat([z, padding], dim=3), mask=mask)
        assert torch.equal(output.loss, expected.loss)
        assert torch.equal(maps(output.indices)[0][:, :, :3], maps(expected.indices)[0])
    assert states_equal(cut, masked)


def test_nothing_valid_is_no_loss_and_no_learning(quantizer: Quantizer):
    z = latent(quantizer, seed=3).requires_grad_()
    before = copy.deepcopy(quantizer)
    output = quantizer.train()(z, mask=torch.zeros(z.shape[0], *z.shape[2:], dtype=torch.bool))
    (output.loss + 0 * z.sum()).backward()
    assert output.loss.item() == 0
    assert output.quantized.isfinite().all()
    assert z.grad is None or not z.grad.any()
    assert states_equal(quantizer, before)


def test_copies_configurations_and_state_dicts_are_complete(quantizer: Quantizer):
    trained(quantizer)
    z = latent(quantizer, seed=7)
    expected = quantizer(z)
    twin = quantizer_from_config(quantizer.config())
    assert twin.config() == quantizer.config()
    twin.load_state_dict(quantizer.state_dict())
    for other in (copy.deepcopy(quantizer), twin.eval()):
        assert type(other) is type(quantizer)
        assert torch.equal(other(z).quantized, expected.quantized)
    # going on learning gives the same, too: nothing that matters was left out of the state
    outputs = []
    for other in (quantizer, twin):
        torch.manual_seed(9)
        outputs.append(trained(other)(z))
    assert torch.equal(outputs[0].quantized, outputs[1].quantized)
    assert torch.equal(outputs[0].loss, outputs[1].loss)


def test_the_codebook_is_what_decode_gives(quantizer: Quantizer):
    trained(quantizer)
    codebook = quantizer.get_codebook()
    assert codebook.shape[-2] == quantizer.num_embeddings
    if isinstance(quantizer, PointwiseQuantizer) and not quantizer.code_shape:
        indices = torch.arange(quantizer.num_embeddings)
        torch.testing.assert_close(quantizer.decode(indices), codebook)


def test_two_runs_with_one_seed_are_equal(quantizer: Quantizer):
    twin = copy.deepcopy(quantizer)
    for copied in (quantizer, twin):
        torch.manual_seed(3)
        trained(copied, steps=4)
    assert states_equal(quantizer, twin)


# ---- in graphs --------------------------------------------------------------------------------------------------

WRAPPED = [
    ("vq", "two heads", "projected", "residual"),
    ("ema", "two shared heads", "direct", "shared residual"),
    ("lfq", "two heads", "projected", "multi-scale"),
]
ALONE = ("vq-cosine-rotation", "simvq", "ibq", "gumbel", "fsq", "bsq")
GRAPHS = [*WRAPPED, *((base, "one head", "direct", "bare") for base in ALONE)]
"""Every class of quantizer once."""


def in_graphs() -> None:
    """Compile and export; runs in a process of its own, because the tests' import hook cannot be compiled."""
    for row in GRAPHS:
        torch.manual_seed(0)
        torch._dynamo.reset()
        quantizer = trained(compose(*row), steps=1)
        z = latent(quantizer, seed=6)
        expected = quantizer(z)
        compiled = torch.compile(quantizer.forward, fullgraph=True, backend="aot_eager")(z)
        torch.testing.assert_close(compiled.quantized, expected.quantized)
        torch.testing.assert_close(compiled.loss, expected.loss)

        encoder, decoder = _Part(quantizer.encode, quantizer), _Part(quantizer.decode, quantizer)
        exported = torch.export.export(encoder, (z,)).module()(z)
        assert all(torch.equal(a, b) for a, b in zip(maps(exported), maps(expected.indices), strict=True))
        decoded = torch.export.export(decoder, (expected.indices,)).module()(expected.indices)
        torch.testing.assert_close(decoded, expected.quantized)
        print("ok", *row, flush=True)


class _Part(torch.nn.Module):
    def __init__(self, function: Callable[[Any], Any], owner: Quantizer):
        super().__init__()
        self.function, self.owner = function, owner

    def forward(self, x: Any) -> Any:
        return self.function(x)


def test_eval_compiles_without_a_break_and_exports(clean: CleanInterpreter):
    code = f"import runpy; runpy.run_path({str(Path(__file__))!r})['in_graphs']()"
    result = clean.run("-c", code)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ok ") == len(GRAPHS)
