"""Every back end against a float64 brute force, on easy, hard and hostile numbers.

Triton takes part where there is a GPU, and under its interpreter, with which `test_triton.py` runs this file again.
"""

import os

import pytest
import torch
from brute_force import METRICS, assert_nearest, costs_in_float64, few_vectors, randn

from smalti.ops import native, nearest_code, portable, waiting

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
KERNELS = native._native.kernels() if native.available() else []
SIZES = (
    (16, 1),
    (1, 1),
    (1, 8),
    (2, 3),
    (63, 5),
    (64, 4),
    (65, 8),
    (257, 7),
    (1000, 13),
    (1025, 32),
    (9000, 3),
    (130, 257),
)


def by_kernel(name):
    """The search by one of the native kernels that this machine can run."""

    def search(z, codebook, metric="euclidean"):
        z, codebook = z.numpy(), codebook.numpy()
        cost, index = torch.full((len(z),), torch.inf, dtype=torch.float64), torch.zeros(len(z), dtype=torch.int64)
        packed = native._native.PackedCodebook(codebook, METRICS.index(metric), 2, name)
        packed.search(codebook, z, cost.numpy(), index.numpy(), 0, 2)
        return index

    return search


def by_triton(z, codebook, metric="euclidean"):
    return nearest_code(z.to(DEVICE), codebook.to(DEVICE), metric, backend="triton").cpu()


@pytest.fixture(params=[*KERNELS, "portable", "portable, as on a GPU", "triton"])
def search(request, monkeypatch):
    """The search by each back end."""
    if request.param == "triton":
        if not INTERPRETED and not torch.cuda.is_available():
            pytest.skip("no GPU here; test_triton.py runs this under Triton's interpreter")
        return by_triton
    if request.param == "portable, as on a GPU":
        monkeypatch.setattr(waiting, "WAITING", {"cpu"})
        return portable_search
    return portable_search if request.param == "portable" else by_kernel(request.param)


def portable_search(z, codebook, metric="euclidean"):
    return portable.nearest(z, codebook, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_random_numbers(search, K, D, metric):
    z, codebook = randn(67, D, seed=K), randn(K, D, seed=D)
    assert_nearest(search(z, codebook, metric), z, codebook, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("K", [70, 5000])
def test_equal_codes_give_the_lowest_index(search, K, metric):
    base, z = randn(K // 7, 9), randn(50, 9, seed=1)
    once, repeated = search(z, base, metric), search(z, base.repeat(7, 1), metric)
    assert torch.equal(once, repeated)
    assert torch.equal(search(z, base[:1].repeat(K, 1), metric), torch.zeros(50, dtype=torch.int64))
    assert torch.equal(search(torch.zeros(3, 9), base, "dot"), torch.zeros(3, dtype=torch.int64))


def test_ties_between_different_codes(search):
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 4)
    z = torch.cartesian_prod(*[torch.tensor([0.5, 1.0, 2.5])] * 4)
    assert torch.equal(search(z, grid), costs_in_float64(z, grid, "euclidean").argmin(1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_large_offset(search, offset, metric):
    z, codebook = randn(40, 16) + offset, randn(1500, 16, seed=1) + offset
    assert_nearest(search(z, codebook, metric), z, codebook, metric)


def test_two_distant_clusters(search):
    codebook = randn(600, 8, seed=1) * 1e-3 + torch.tensor([1e4, -1e4]).repeat(300)[:, None]
    z = codebook[::11] + randn(55, 8) * 1e-3
    assert_nearest(search(z, codebook), z, codebook, "euclidean")


@pytest.mark.parametrize("width", [0.3, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("metric", METRICS)
def test_crowded_codes(search, width, metric):
    """Codes closer than bfloat16 can tell, then closer than float32 scores can."""
    centres = randn(16, 8)
    codebook = centres.repeat(100, 1) + width * randn(1600, 8, seed=1)
    z = centres.repeat(6, 1) + width * randn(96, 8, seed=2)
    assert_nearest(search(z, codebook, metric), z, codebook, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("K", [40, 400])
def test_few_vectors_among_many_codes(search, K, metric):
    """Triton splits the codes; equal codes, almost equal ones and NaN lie in different splits."""
    z, codebook, usable = few_vectors(K)
    indices = search(z, codebook, metric)
    assert torch.isin(indices, usable).all()
    assert_nearest(torch.searchsorted(usable, indices), z, codebook[usable], metric)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3])
def test_codes_find_themselves(search, distance):
    codebook = randn(1100, 32)
    z = (codebook + distance * randn(1100, 32, seed=1))[::11]
    assert torch.equal(search(z, codebook), torch.arange(0, 1100, 11))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-18, 1e-17, 1e-15, 1e-10, 1e10, 1e18, 1e25, 1e37])
@pytest.mark.parametrize("metric", METRICS)
def test_any_scale(search, scale, metric):
    z, codebook = randn(40, 12) * scale, randn(500, 12, seed=1) * scale
    assert_nearest(search(z, codebook, metric), z, codebook, metric)


def test_codebook_of_very_different_lengths(search):
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    codebook = randn(600, 8) * torch.logspace(-6, 4, 600)[order][:, None]
    z = torch.cat([codebook[::15] * (1 + 1e-3 * randn(40, 1)), randn(20, 8)])
    for metric in METRICS:
        assert_nearest(search(z, codebook, metric), z, codebook, metric)


def test_uniform_initialisation_far_from_z(search):
    codebook = (torch.rand(1024, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1) / 1024
    z = randn(60, 8) * 3 + 5
    assert_nearest(search(z, codebook), z, codebook, "euclidean")


def test_cosine_knows_no_lengths(search):
    codebook, z = randn(700, 10), randn(90, 10, seed=1)
    lengths = 2.0 ** torch.randint(-8, 8, (700, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(search(z, codebook, "cosine"), search(z * 4, codebook * lengths, "cosine"))
    one_way = torch.arange(1.0, 100.0)[:, None]
    assert torch.equal(search(one_way * 0.1, one_way, "cosine"), torch.zeros(99, dtype=torch.int64))
    codebook[5] = 0
    assert_nearest(search(z, codebook, "cosine"), z, codebook, "cosine")


@pytest.mark.parametrize("metric", METRICS)
def test_numbers_that_are_not_finite(search, metric):
    z, codebook = randn(100, 6), randn(300, 6, seed=1)
    expected = search(z, codebook, metric)
    bad_z = z.clone()
    bad_z[3, 2], bad_z[50, 0], bad_z[99, 5] = torch.nan, torch.inf, -torch.inf
    indices = search(bad_z, codebook, metric)
    good = bad_z.isfinite().all(1)
    assert torch.equal(indices[good], expected[good])
    assert ((indices >= 0) & (indices < 300)).all()

    bad_book = codebook.clone()
    bad_book[7], bad_book[100, 3], bad_book[299, 0] = torch.nan, torch.inf, -torch.inf
    usable = bad_book.isfinite().all(1).nonzero()[:, 0]
    assert torch.equal(search(z, bad_book, metric), usable[search(z, codebook[usable], metric)])
    assert (search(z, torch.full((40, 6), torch.nan), metric) == 0).all()
