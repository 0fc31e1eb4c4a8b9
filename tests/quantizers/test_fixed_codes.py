"""FSQ, LFQ and BSQ: codes that are computed, against the papers' formulas and against listing all codes."""

import math

import numpy as np
import pytest
import torch
from clean_interpreter import CleanInterpreter

from smalti.quantizers import BinarySphericalQuantizer, FiniteScalarQuantizer, LookupFreeQuantizer, ResidualQuantizer


def fsq_by_the_paper(z: np.ndarray, levels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and indices of z (N, D) in float64: bound, round, number in mixed radix."""
    half_range = [(level - 1) * 1.001 / 2 for level in levels]
    offset = [0.5 * (level % 2 == 0) for level in levels]
    values, indices = np.empty_like(z), np.zeros(len(z), dtype=np.int64)
    for n, row in enumerate(z):
        base = 1
        for d, level in enumerate(levels):
            shift = math.atanh(offset[d] / half_range[d])
            digit = round(math.tanh(row[d] + shift) * half_range[d] - offset[d]) + level // 2
            values[n, d] = (digit - level // 2) / (level // 2)
            indices[n] += base * digit
            base *= level
    return values, indices


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 3, 4], [7], [16, 9]])
def test_fsq_is_the_papers_formula(levels: list[int]):
    z = torch.randn(500, len(levels), generator=torch.Generator().manual_seed(0)) * 2
    values, indices = fsq_by_the_paper(z.double().numpy(), levels)
    fsq = FiniteScalarQuantizer(levels)
    output = fsq(z)
    assert np.array_equal(output.indices.numpy(), indices)
    np.testing.assert_allclose(output.quantized.numpy(), values, atol=1e-7)
    assert output.terms == {}
    assert output.loss.item() == 0
    assert fsq.num_embeddings == math.prod(levels)
    assert fsq.get_codebook().unique(dim=0).shape[0] == math.prod(levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_1000_codes_of_8_5_5_5_come_from_half_precision(dtype: torch.dtype):
    fsq = FiniteScalarQuantizer([8, 5, 5, 5])
    # every combination of inputs on a grid fine enough for each component's cells
    axis = torch.linspace(-3, 3, 25)
    z = torch.cartesian_prod(axis, axis[::2], axis[::2], axis[::2]).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = fsq(z)
    assert output.indices.unique().numel() == 1000
    assert output.quantized.dtype == dtype
    assert output.quantized.unique(dim=0).shape[0] == 1000  # the values, too, survive the dtype
    assert torch.equal(output.indices, fsq(z.float()).indices)


def test_noise_dropout_leaves_a_share_unrounded_within_a_step():
    fsq = FiniteScalarQuantizer([5, 4], symmetric=True, noise_dropout=0.3)
    z = torch.randn(5000, 2)
    output, u = fsq(z), fsq.project(z)
    rounded = output.quantized == fsq.decode(output.indices)
    assert abs(rounded.float().mean() - 0.7) < 0.02
    off = ((output.quantized - u).abs() * torch.tensor([2.0, 1.5]))[~rounded]
    assert off.max() <= 0.5 + 1e-5
    assert abs(off.mean() - 0.25) < 0.01  # uniform
    assert torch.equal(fsq.eval()(z).quantized, fsq.decode(output.indices))
    assert fsq.config()["noise_dropout"] == 0.3


def test_fsq_gradient_is_that_of_the_bound():
    z = torch.randn(40, 3, dtype=torch.float32, requires_grad=True)
    g = torch.randn(40, 3)
    FiniteScalarQuantizer([5, 7, 9])(z).quantized.backward(g)
    # odd levels: no shift; d/dz tanh(z) * 1.001 (L - 1) / 2 / (L // 2)
    torch.testing.assert_close(z.grad, g * (1 - z.detach().tanh() ** 2) * 1.001)


@pytest.mark.parametrize("cls", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_binary_codes_are_the_nearest_of_all_listed(cls: type[LookupFreeQuantizer | BinarySphericalQuantizer]):
    quantizer = cls(6)
    codebook = quantizer.get_codebook()
    assert codebook.unique(dim=0).shape[0] == 64
    z = torch.randn(200, 6)
    unit = torch.nn.functional.normalize(z, dim=1) if cls is BinarySphericalQuantizer else z
    nearest = torch.cdist(unit.double(), codebook.double()).argmin(dim=1)
    output = quantizer(z)
    assert torch.equal(output.indices, nearest)
    torch.testing.assert_close(output.quantized.norm(dim=1), codebook.norm(dim=1)[nearest])
    if cls is BinarySphericalQuantizer:
        torch.testing.assert_close(codebook.norm(dim=1), torch.ones(64))
    bits = quantizer.indices_to_bits(output.indices)
    assert bits.dtype == torch.bool
    assert torch.equal(bits, z > 0)
    assert torch.equal((bits.long() * 2 ** torch.arange(6)).sum(dim=1), output.indices)


@pytest.mark.parametrize("cls", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_binary_terms_equal_a_softmax_over_all_codes(cls: type[LookupFreeQuantizer | BinarySphericalQuantizer]):
    quantizer = cls(6, temperature=0.7, group_size=6)
    z = torch.randn(50, 6, requires_grad=True)
    terms = quantizer(z).terms
    u = quantizer.project(z)
    p = (-torch.cdist(u, quantizer.get_codebook()).square() / 0.7).softmax(dim=1)
    mean = p.mean(dim=0)
    sample_entropy = -(p * p.log()).sum(dim=1).mean()
    divergence = math.log(64) + (mean * mean.log()).sum()
    for name, expected in (("sample_entropy", sample_entropy), ("codebook_divergence", divergence)):
        torch.testing.assert_close(terms[name], expected)
        grads = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in (terms[name], expected)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["commitment"], (u - quantizer(z).quantized.detach()).square().mean())


@pytest.mark.parametrize("cls", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_entropy_terms_spread_usage_and_sharpen_choices(cls: type[LookupFreeQuantizer | BinarySphericalQuantizer]):
    """Descending the loss from vectors that nearly all fall on one code uses many, each with more certainty."""
    torch.manual_seed(0)
    quantizer = cls(4, 0.0, temperature=1.0)
    z = (torch.randn(256, 4) * 0.3 + 0.5).requires_grad_()
    before = quantizer(z)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    after = quantizer(z)
    # one code held over a fifth of the vectors; in the end all 16 hold about as many
    assert before.indices.bincount(minlength=16).max() > 256 // 5
    assert after.indices.unique().numel() == 16
    assert after.indices.bincount(minlength=16).max() < before.indices.bincount(minlength=16).max() / 1.5
    assert after.terms["codebook_divergence"] < before.terms["codebook_divergence"] / 3
    assert after.terms["sample_entropy"] < before.terms["sample_entropy"]


@pytest.mark.parametrize("quantizer", [LookupFreeQuantizer(32), BinarySphericalQuantizer(32), LookupFreeQuantizer(62)])
def test_long_binary_indices_keep_every_bit(quantizer: LookupFreeQuantizer | BinarySphericalQuantizer):
    bits = quantizer.embedding_dim
    z = torch.randn(64, bits, 2, 2)
    z[0], z[1] = 1, -1
    output = quantizer(z)
    assert output.indices[0].unique().tolist() == [2**bits - 1]
    assert output.indices[1].unique().tolist() == [0]
    assert torch.equal(quantizer.decode(output.indices) > 0, z > 0)
    assert output.loss.isfinite()
    with pytest.raises(ValueError, match="decode the indices that you need instead"):
        quantizer.get_codebook()


def test_long_fsq_indices_keep_every_digit():
    fsq = FiniteScalarQuantizer([4] * 16)
    assert fsq.num_embeddings == 2**32
    z = torch.randn(64, 16, 2, 2) * 3
    output = fsq(z)
    assert output.indices.max() > 2**31
    assert torch.equal(fsq.decode(output.indices), output.quantized)
    with pytest.raises(ValueError, match="decode the indices that you need instead"):
        fsq.get_codebook()
    # four residual levels of it still fit: each level has an index of its own
    assert ResidualQuantizer([fsq], num_quantizers=4)(z).indices.shape == (64, 2, 2, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FiniteScalarQuantizer([]), "levels"),
        (lambda: FiniteScalarQuantizer([5, 1]), "levels"),
        (lambda: FiniteScalarQuantizer([5, 5], noise_dropout=1.5), "noise_dropout"),
        (lambda: FiniteScalarQuantizer([8] * 21), "int64"),
        (lambda: LookupFreeQuantizer(63), "62"),
        (lambda: LookupFreeQuantizer(0), "embedding_dim"),
        (lambda: LookupFreeQuantizer(8, temperature=0.0), "temperature"),
        (lambda: BinarySphericalQuantizer(8, gamma=-1.0), "gamma"),
        (lambda: BinarySphericalQuantizer(30, group_size=30), "group_size"),
    ],
)
def test_impossible_arguments_are_refused(build: object, message: str):
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


MEMORY = """
import resource, torch
from smalti.quantizers import *
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.randn(100, 100) @ torch.randn(100, 100)
start = peak()
quantizers = [FiniteScalarQuantizer([4] * 16), LookupFreeQuantizer(32), BinarySphericalQuantizer(32)]
wrapped = MultiScaleQuantizer(2**32, 32, (1, 2, 4), quantizer=quantizers[1])
print("build", peak() - start)
for quantizer in (*quantizers, wrapped):
    quantizer(torch.randn(2, quantizer.embedding_dim, 4, 4)).loss
print("use", peak() - start)
for group_size in (9, 18):
    start = peak()
    z = torch.randn(4, 18, 32, 32, requires_grad=True)
    LookupFreeQuantizer(18, group_size=group_size)(z).loss.backward()
    print("entropy", peak() - start)
"""


def test_implicit_codebooks_and_their_entropies_stay_small(clean: CleanInterpreter):
    """In MB of peak memory: 2**32 codes listed once would take 34 GB, N x 2**18 probabilities 4 GB."""
    result = clean.run("-c", MEMORY)
    assert result.returncode == 0, result.stderr
    used = [(name, float(value)) for name, value in (line.split() for line in result.stdout.splitlines())]
    assert [name for name, _ in used] == ["build", "use", "entropy", "entropy"]
    for (name, value), limit in zip(used, (50, 50, 500, 500), strict=True):
        assert value < limit, f"{name}: {value:.0f} MB"
