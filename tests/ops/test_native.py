"""The native search against a float64 brute force, on easy, hard and hostile numbers."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.ops import native, nearest_code

if not native.available():
    pytest.skip("smalti was installed without a compiler", allow_module_level=True)

METRICS = ("euclidean", "cosine", "dot")
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
    (300, 257),
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def costs_in_float64(z, codebook, metric):
    """(N, K), smaller is nearer."""
    z, codebook = z.double(), codebook.double()
    if metric == "euclidean":
        return torch.stack([(codebook - row).square().sum(1) for row in z]) if len(z) else torch.zeros(0, len(codebook))
    if metric == "cosine":
        codebook = torch.nn.functional.normalize(codebook, dim=1, eps=1e-12)
    return -(z @ codebook.T)


def assert_nearest(indices, z, codebook, metric, tolerance=1e-13):
    """The chosen cost is the smallest one, to float64 rounding; of equal codes the first was taken."""
    costs = costs_in_float64(z, codebook, metric)
    smallest, chosen = costs.min(1).values, costs.gather(1, indices[:, None])[:, 0]
    scale = smallest.abs() if metric == "euclidean" else z.double().norm(dim=1) * codebook.double().norm(dim=1).max()
    assert (chosen <= smallest + tolerance * scale + 1e-300).all()
    first_equal = (codebook[:, None] == codebook[indices]).all(2).double().argmax(0)
    assert torch.equal(indices, first_equal)


@pytest.fixture(params=native._native.kernels() if native.available() else [])
def search(request):
    """The search by each kernel that this machine can run."""

    def run(z, codebook, metric="euclidean", threads=2):
        z, codebook = z.numpy(), codebook.numpy()
        cost, index = torch.full((len(z),), torch.inf, dtype=torch.float64), torch.zeros(len(z), dtype=torch.int64)
        packed = native._native.PackedCodebook(codebook, METRICS.index(metric), threads, request.param)
        packed.search(codebook, z, cost.numpy(), index.numpy(), 0, threads)
        return index

    return run


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
    codebook = randn(2000, 8, seed=1) * 1e-3 + torch.tensor([1e4, -1e4]).repeat(1000)[:, None]
    z = codebook[::20] + randn(100, 8) * 1e-3
    assert_nearest(search(z, codebook), z, codebook, "euclidean")


@pytest.mark.parametrize("width", [0.3, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("metric", METRICS)
def test_crowded_codes(search, width, metric):
    """Codes closer than bfloat16 can tell, then closer than float32 scores can."""
    centres = randn(16, 8)
    codebook = centres.repeat(100, 1) + width * randn(1600, 8, seed=1)
    z = centres.repeat(6, 1) + width * randn(96, 8, seed=2)
    assert_nearest(search(z, codebook, metric), z, codebook, metric)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3])
def test_codes_find_themselves(search, distance):
    codebook = randn(4096, 32)
    z = codebook + distance * randn(4096, 32, seed=1)
    assert torch.equal(search(z, codebook), torch.arange(4096))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-18, 1e-17, 1e-15, 1e-10, 1e10, 1e18, 1e25, 1e37])
@pytest.mark.parametrize("metric", METRICS)
def test_any_scale(search, scale, metric):
    z, codebook = randn(40, 12) * scale, randn(500, 12, seed=1) * scale
    assert_nearest(search(z, codebook, metric), z, codebook, metric)


def test_codebook_of_very_different_lengths(search):
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    codebook = randn(2000, 8) * torch.logspace(-6, 4, 2000)[order][:, None]
    z = torch.cat([codebook[::50] * (1 + 1e-3 * randn(40, 1)), randn(20, 8)])
    for metric in METRICS:
        assert_nearest(search(z, codebook, metric), z, codebook, metric)


def test_uniform_initialisation_far_from_z(search):
    codebook = (torch.rand(4096, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1) / 4096
    z = randn(100, 8) * 3 + 5
    assert_nearest(search(z, codebook), z, codebook, "euclidean")


def test_cosine_knows_no_lengths(search):
    codebook, z = randn(700, 10), randn(90, 10, seed=1)
    lengths = 2.0 ** torch.randint(-8, 8, (700, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(search(z, codebook, "cosine"), search(z * 4, codebook * lengths, "cosine"))
    one_way = torch.arange(1.0, 400.0)[:, None]
    assert torch.equal(search(one_way * 0.1, one_way, "cosine"), torch.zeros(399, dtype=torch.int64))
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


def test_threads_change_nothing(search):
    z, codebook = randn(1000, 8), randn(2000, 8, seed=1)
    assert torch.equal(search(z, codebook, threads=1), search(z, codebook, threads=7))


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 120),
    K=st.integers(1, 700),
    D=st.integers(1, 40),
    metric=st.sampled_from(METRICS),
    digits=st.integers(0, 3),
    offset=st.sampled_from([0.0, 1.0, 1000.0]),
)
def test_any_shape(N, K, D, metric, digits, offset):
    """Few digits make many ties."""
    z, codebook = (
        randn(N, D, seed=K).round(decimals=digits) + offset,
        randn(K, D, seed=N).round(decimals=digits) + offset,
    )
    assert_nearest(native.nearest(z, codebook, metric), z, codebook, metric)


def test_parts_of_rows_and_codes(monkeypatch):
    z, codebook = randn(1000, 8), randn(900, 8, seed=1)
    whole = native.nearest(z, torch.cat([codebook, codebook]))
    monkeypatch.setattr(native, "PART", 8 * 130)
    assert torch.equal(native.nearest(z, torch.cat([codebook, codebook])), whole)
    assert torch.equal(native.nearest(z, codebook, packed=native.pack(codebook)), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted(dtype):
    z, codebook = randn(200, 8).to(dtype), randn(300, 8, seed=1).to(dtype)
    assert_nearest(native.nearest(z, codebook), z, codebook, "euclidean")


def test_strides_and_gradients():
    z, codebook = randn(8, 60).T, randn(3, 100, 8, seed=1)[1].requires_grad_()
    assert torch.equal(native.nearest(z, codebook), native.nearest(z.contiguous(), codebook.detach().clone()))
    assert torch.equal(
        native.nearest(z[::3, ::2], codebook[::2, ::2]), native.nearest(z[::3, ::2].clone(), codebook[::2, ::2].clone())
    )
    assert not native.nearest(z, codebook).requires_grad


@pytest.mark.parametrize("change", ["data", "numpy", "one sign", "all signs", "swap", "last number"])
def test_a_changed_codebook_is_packed_anew(change):
    z, codebook = randn(500, 8), torch.nn.Parameter(randn(200, 8, seed=1))
    native.nearest(z, codebook)
    if change == "data":
        codebook.data.copy_(randn(200, 8, seed=2))
    elif change == "numpy":
        codebook.detach().numpy()[:] *= -2
    elif change == "one sign":
        codebook.data[17, 3].neg_()
    elif change == "all signs":
        codebook.data.neg_()
    elif change == "swap":
        codebook.data[[0, 1]] = codebook.data[[1, 0]]
    else:
        codebook.data[-1, -1] = 30.0
    assert_nearest(native.nearest(z, codebook), z, codebook.detach(), "euclidean")


def test_fingerprints_differ():
    fingerprint = native._native.fingerprint
    base = randn(60, 7)
    seen = {fingerprint(base.numpy())}
    for i in range(base.numel()):
        for change in (torch.neg, lambda x: torch.nextafter(x, torch.tensor(9.0)), torch.zeros_like):
            other = base.clone()
            other.view(-1)[i] = change(other.view(-1)[i])
            seen.add(fingerprint(other.numpy()))
    assert len(seen) == 1 + 3 * base.numel()
    assert fingerprint(base.clone().numpy()) in seen


def test_an_unchanged_codebook_is_packed_once_and_memory_is_bounded(monkeypatch):
    cache = native._Cache(max_bytes=400_000)
    books = [randn(1000, 16, seed=seed) for seed in range(12)]
    first = cache.get(books[0].numpy(), "euclidean", 1)
    assert cache.get(books[0].clone().numpy(), "euclidean", 1) is first
    assert cache.get(books[0].numpy(), "dot", 1) is not first
    for book in books:
        cache.get(book.numpy(), "euclidean", 1)
    assert sum(part.nbytes for part in cache._parts.values()) <= 400_000
    assert cache.get(books[0].numpy(), "euclidean", 1) is not first


def test_many_python_threads():
    z, books = randn(300, 8), [randn(200, 8, seed=seed) for seed in range(4)]
    expected = [native.nearest(z, book) for book in books]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(native.nearest(z, books[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("z", "codebook", "metric", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(0, 3), "dot", "codebook must hold"),
        (torch.zeros(2, 3), torch.zeros(5, 4), "dot", "codebook must hold"),
        (torch.zeros(2, 0), torch.zeros(5, 0), "dot", "codebook must hold"),
        (torch.zeros(2, 3), torch.zeros(5, 3), "manhattan", "metric must be"),
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(5, 3), "dot", "z must be"),
        (torch.zeros(2, 3), torch.zeros(5, 3, device="meta"), "dot", "codebook must be"),
    ],
)
def test_errors_name_the_argument(z, codebook, metric, message):
    with pytest.raises(ValueError, match=message):
        native._check(z, codebook, metric)


def test_a_packed_codebook_serves_its_own_kind_only():
    packed = native.pack(randn(5, 3), "dot")
    with pytest.raises(ValueError, match="packed"):
        native.nearest(randn(2, 3), randn(5, 3), "euclidean", packed)
    with pytest.raises(ValueError, match="packed"):
        native.nearest(randn(2, 3), randn(6, 3), "dot", packed)


def test_back_ends_by_name():
    z, codebook = randn(300, 6), randn(50, 6, seed=1)
    named = [nearest_code(z, codebook, backend=backend) for backend in ("auto", "native", "portable")]
    assert torch.equal(named[0], named[1])
    assert torch.equal(named[0], named[2])
    with pytest.raises(ValueError, match="'native'"):
        nearest_code(torch.zeros(2, 0), torch.zeros(5, 0), backend="native")
    with pytest.raises(ValueError, match="codebook_KD: holds NaN"):
        nearest_code(z, torch.full((2, 6), torch.nan), check_finite=True)
