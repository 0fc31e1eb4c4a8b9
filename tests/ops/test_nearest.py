"""nearest_code against a float64 brute force over the full distance matrix."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.ops import nearest as front
from smalti.ops import nearest_code
from smalti.ops.portable import MAX_SIDE


@pytest.fixture(scope="module", autouse=True, params=["auto", "portable"])
def _back_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test with the best back end of this machine, and with the one that runs everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "portable":
            patch.setattr(front, "_choose", lambda z, codebook: "portable")
        yield


def scores(z: torch.Tensor, codebook: torch.Tensor, metric: str) -> np.ndarray:
    """Full (N, K) matrix in float64, smaller is nearer."""
    z64, e64 = z.double().numpy(), codebook.double().numpy()
    if metric == "euclidean":
        return ((z64[:, None, :] - e64[None, :, :]) ** 2).sum(-1)
    if metric == "cosine":
        e64 = e64 / np.linalg.norm(e64, axis=1, keepdims=True)
        z64 = z64 / np.linalg.norm(z64, axis=1, keepdims=True)
    return -(z64[:, None, :] * e64[None, :, :]).sum(-1)


def assert_nearest(indices: torch.Tensor, full: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal to the brute force wherever the best code leads by more than rounding, and never clearly worse."""
    assert indices.dtype == torch.int64
    assert indices.shape == (full.shape[0],)
    found = indices.numpy()
    best = full.min(axis=1)
    scale = 1 + np.abs(best)
    assert (full[np.arange(len(found)), found] <= best + tolerance * scale).all()
    if full.shape[1] > 1:
        two = np.partition(full, 1, axis=1)
        clear = two[:, 1] - two[:, 0] > tolerance * scale
        assert clear.mean() > 0.9 or len(found) == 0
        np.testing.assert_array_equal(found[clear], full.argmin(axis=1)[clear])


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (257, 33, 7), (500, 300, 64), (64, 512, 3)])
def test_equals_brute_force(metric: str, n: int, k: int, d: int) -> None:
    z, codebook = torch.randn(n, d), torch.randn(k, d) * 2 + 0.5
    assert_nearest(nearest_code(z, codebook, metric), scores(z, codebook, metric))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_every_pair_of_tiles(metric: str) -> None:
    """N and K just above two tiles: each tile of codes must be able to win, and each tile of rows is filled."""
    n, k = MAX_SIDE + 5, 2 * MAX_SIDE + 3
    codebook = torch.nn.functional.normalize(torch.randn(k, 16), dim=1)
    chosen = torch.randint(0, k, (n,))
    chosen[:6] = torch.tensor([0, MAX_SIDE - 1, MAX_SIDE, 2 * MAX_SIDE - 1, 2 * MAX_SIDE, k - 1])
    chosen[-1] = k - 1
    # A code moved by a hundredth is nearest to itself under each metric: all codes have length 1.
    z = codebook[chosen] * 1.01
    torch.testing.assert_close(nearest_code(z, codebook, metric), chosen, rtol=0, atol=0)


@pytest.mark.parametrize("k", [2, 50, MAX_SIDE + 7])
def test_ties_go_to_the_lowest_index(k: int) -> None:
    """Whole-number codes and half-way vectors: float32 is exact here, so a tie is a tie."""
    rng = torch.Generator().manual_seed(1)
    codebook = torch.randint(-4, 5, (k, 3), generator=rng).float()
    z = torch.randint(-9, 10, (300, 3), generator=rng).float() / 2
    expected = scores(z, codebook, "euclidean").argmin(axis=1)  # numpy's argmin returns the first minimum
    np.testing.assert_array_equal(nearest_code(z, codebook).numpy(), expected)


def test_a_copy_of_the_codebook_behind_it_is_never_chosen() -> None:
    codebook = torch.randn(MAX_SIDE - 3, 6)  # the copy crosses the border of the tiles
    assert nearest_code(torch.randn(200, 6), torch.cat([codebook, codebook])).max() < MAX_SIDE - 3


def test_no_vectors() -> None:
    assert nearest_code(torch.empty(0, 4), torch.randn(5, 4)).tolist() == []


def test_vectors_far_from_the_origin() -> None:
    """A common offset must not eat the digits that tell codes apart."""
    z, codebook = torch.randn(300, 8) + 1000, torch.randn(40, 8) + 1000
    assert_nearest(nearest_code(z, codebook), scores(z, codebook, "euclidean"), tolerance=2e-2)
    assert (nearest_code(z, codebook).numpy() == scores(z, codebook, "euclidean").argmin(1)).mean() > 0.99


def test_memory_layout_does_not_matter() -> None:
    z, codebook = torch.randn(8, 100).T, torch.randn(8, 60)[:, ::2].T
    assert not z.is_contiguous()
    assert not codebook.is_contiguous()
    expected = nearest_code(z.contiguous(), codebook.contiguous())
    assert torch.equal(nearest_code(z, codebook), expected)
    assert_nearest(expected, scores(z, codebook, "euclidean"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_other_dtypes_are_computed_in_fp32(dtype: torch.dtype, metric: str) -> None:
    z, codebook = torch.randn(200, 32).to(dtype), torch.randn(100, 32).to(dtype)
    assert_nearest(nearest_code(z, codebook, metric), scores(z, codebook, metric))


def test_values_beyond_the_range_of_half_precision() -> None:
    z = torch.full((1, 32), 3e4, dtype=torch.float16)  # its square is infinite in fp16
    codebook = torch.stack([torch.full((32,), 1e4), torch.full((32,), 2.9e4), torch.full((32,), 6e4)]).half()
    assert nearest_code(z, codebook).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(dtype: torch.dtype) -> None:
    z, codebook = torch.randn(500, 64), torch.randn(200, 64)
    with torch.autocast("cpu", dtype):
        inside = [nearest_code(z, codebook, metric) for metric in ("euclidean", "cosine", "dot")]
    outside = [nearest_code(z, codebook, metric) for metric in ("euclidean", "cosine", "dot")]
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a, b)


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_any_size(n: int, k: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, codebook = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    found, full = nearest_code(z, codebook).numpy(), scores(z, codebook, "euclidean")
    if n:
        assert (full[np.arange(n), found] <= full.min(axis=1) + 1e-5 * (1 + full.min(axis=1))).all()


def test_cosine_ignores_lengths_and_dot_does_not() -> None:
    codebook = torch.tensor([[10.0, 1.0], [0.0, 0.1]])
    z = torch.tensor([[0.1, 1.0], [100.0, 1000.0]])
    assert nearest_code(z, codebook, "cosine").tolist() == [1, 1]
    assert nearest_code(z, codebook, "dot").tolist() == [0, 0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("z", "codebook", "metric", "named"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), "manhattan", "manhattan"),
        (torch.zeros(2, 3), torch.zeros(0, 3), "euclidean", "0 codes"),
        (torch.zeros(2, 3), torch.zeros(4, 5), "euclidean", "3"),
    ],
)
def test_refusals_name_the_value(z: torch.Tensor, codebook: torch.Tensor, metric: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        nearest_code(z, codebook, metric)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_refusals_of_the_other_arguments() -> None:
    z, codebook = torch.zeros(2, 3), torch.zeros(4, 3)
    for wrong in ({"backend": "cuda"}, {"precision": "double"}):
        with pytest.raises(ValueError, match=r"got '(cuda|double)'"):
            nearest_code(z, codebook, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dimension 0"):
        nearest_code(torch.zeros(2, 0), torch.zeros(4, 0))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused_when_asked(bad: float) -> None:
    z, codebook = torch.randn(5, 3), torch.randn(4, 3)
    spoiled_z, spoiled_codebook = z.clone(), codebook.clone()
    spoiled_z[2, 1], spoiled_codebook[3, 0] = bad, bad
    with pytest.raises(ValueError, match="z_ND: got NaN"):
        nearest_code(spoiled_z, codebook, check_finite=True)
    with pytest.raises(ValueError, match="codebook_KD: got NaN"):
        nearest_code(z, spoiled_codebook, check_finite=True)
    assert torch.equal(nearest_code(z, codebook, check_finite=True), nearest_code(z, codebook))
    assert nearest_code(spoiled_z, codebook)[2] == 0  # not asked: no crash


def test_the_faster_mode_is_exact_where_there_is_none() -> None:
    z, codebook = torch.randn(300, 64), torch.randn(500, 64)
    assert torch.equal(nearest_code(z, codebook, precision="fast"), nearest_code(z, codebook))


@given(st.integers(1, 60), st.integers(1, 400), st.integers(1, 12), st.integers(0, 2**31))
def test_tight_clusters_far_from_each_other(n: int, k: int, d: int, seed: int) -> None:
    """1e4 apart with a spread of 1e-3: fp32 scores keep no digit of what tells the codes of a cluster apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1e4 * torch.randint(-1, 2, (3, d), generator=generator)
    codebook = centres[torch.arange(k) % 3] + 1e-3 * torch.randn(k, d, generator=generator)
    z = centres[torch.arange(n) % 3] + 1e-3 * torch.randn(n, d, generator=generator)
    full = scores(z, codebook, "euclidean")
    # in fp32 some of these codes are equal: numpy's argmin returns the first of them
    np.testing.assert_array_equal(nearest_code(z, codebook).numpy(), full.argmin(axis=1))
