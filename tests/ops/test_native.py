"""What the native back end alone has: threads, parts, conversion, the cache of packed codebooks, its errors."""

import threading

import pytest
import torch
from brute_force import METRICS, assert_nearest, randn
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.ops import native, nearest_code

if not native.available():
    pytest.skip("smalti was installed without a compiler", allow_module_level=True)


def search(z, codebook, threads):
    cost, index = torch.full((len(z),), torch.inf, dtype=torch.float64), torch.zeros(len(z), dtype=torch.int64)
    packed = native._native.PackedCodebook(codebook.numpy(), 0, threads)
    packed.search(codebook.numpy(), z.numpy(), cost.numpy(), index.numpy(), 0, threads)
    return index


def test_threads_change_nothing():
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
        (torch.zeros(2, 3), torch.zeros(0, 3), "dot", "codebook: got"),
        (torch.zeros(2, 3), torch.zeros(5, 4), "dot", "codebook: got"),
        (torch.zeros(2, 0), torch.zeros(5, 0), "dot", "codebook: got"),
        (torch.zeros(2, 3), torch.zeros(5, 3), "manhattan", "metric: got"),
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(5, 3), "dot", "z: got"),
        (torch.zeros(2, 3), torch.zeros(5, 3, device="meta"), "dot", "codebook: got"),
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
        nearest_code(torch.zeros(2, 32769), torch.zeros(5, 32769), backend="native")
    with pytest.raises(ValueError, match="codebook_KD: got NaN"):
        nearest_code(z, torch.full((2, 6), torch.nan), check_finite=True)
