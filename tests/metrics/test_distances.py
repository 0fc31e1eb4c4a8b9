"""Fréchet and kernel distance against torch-fidelity on the same features, against closed forms, and under harm."""

import numpy as np
import pytest
import torch
from fidelity import torch_fidelity
from scipy.linalg import sqrtm

from smalti.metrics import FeatureAccumulator, frechet_distance, kernel_distance
from smalti.metrics.kernel_distance import SUBSETS


class Named:
    """As much of a feature network as an accumulator looks at."""

    def __init__(self, name="noise", weights_sha256="0" * 64):
        self.name, self.weights_sha256 = name, weights_sha256

    def features(self, image):
        raise NotImplementedError


def statistics(features, cuts=(), network=None, keep_features=True):
    accumulator = FeatureAccumulator(network or Named(), keep_features)
    for part in torch.tensor_split(features, list(cuts)):
        accumulator.update(part)
    return accumulator.compute()


def correlated(n, f, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(f, f, generator=generator) / f**0.5
    return torch.randn(n, f, generator=generator) @ mixing + shift


@pytest.mark.parametrize(("n", "m", "f"), [(400, 300, 24), (50, 40, 96), (10, 10, 64)], ids=["full", "low", "ten"])
def test_frechet_distance_is_that_of_torch_fidelity(n, m, f):
    fidelity = torch_fidelity().metric_fid
    one, other = correlated(n, f), correlated(m, f, shift=0.3, seed=1)
    theirs = [fidelity.fid_features_to_statistics(features) for features in (one, other)]
    expected = fidelity.fid_statistics_to_metric(
        *({name: value.astype(np.float64) for name, value in stats.items()} for stats in theirs), verbose=False
    )[fidelity.KEY_METRIC_FID]
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected, abs=1e-3)


def test_frechet_distance_is_that_of_the_matrix_root():
    one, other = correlated(300, 16), correlated(200, 16, shift=-0.5, seed=2)
    root = sqrtm(np.cov(one.double().numpy().T) @ np.cov(other.double().numpy().T))
    means = one.double().mean(0) - other.double().mean(0)
    expected = means @ means + np.trace(np.cov(one.numpy().T)) + np.trace(np.cov(other.numpy().T)) - 2 * np.trace(root)
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(float(expected.real), rel=1e-6)


def test_frechet_distance_of_shifted_and_of_scaled_features_is_known():
    """Equal covariances leave |m1 - m2|²; covariance S against c² S leaves (1 - c)² tr S."""
    features = correlated(500, 12)
    here = statistics(features)
    assert frechet_distance(here, statistics(features + 0.5)) == pytest.approx(12 * 0.25, rel=1e-5)
    centred = features - features.mean(0)
    expected = 4 * float(here.covariance.trace())
    assert frechet_distance(statistics(centred), statistics(3 * centred)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(here, here) == pytest.approx(0, abs=1e-6)


def test_degenerate_features_give_a_real_number():
    """Constant and duplicated features, whose S1 S2 has no real square root in floating point."""
    flat = torch.ones(20, 8)
    doubled = correlated(6, 4).repeat(1, 8)
    assert frechet_distance(statistics(flat), statistics(flat * 2)) == pytest.approx(8)
    assert frechet_distance(statistics(doubled), statistics(doubled)) == pytest.approx(0, abs=1e-5)
    wide = correlated(10, 512, seed=3)
    forth, back = (frechet_distance(*map(statistics, pair)) for pair in ((wide, wide.flip(1)), (wide.flip(1), wide)))
    assert np.isfinite(forth)
    assert forth == pytest.approx(back, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "size"), [(60, 50, 30), (300, 260, 100)])
def test_kernel_distance_is_that_of_torch_fidelity(n, m, size):
    fidelity = torch_fidelity().metric_kid
    one, other = correlated(n, 20), correlated(m, 20, shift=0.2, seed=1)
    expected = fidelity.kid_features_to_metric(
        one.double(), other.double(), kid_subset_size=size, kid_subsets=SUBSETS, verbose=False
    )
    ours = kernel_distance(one, other, subset_size=size)
    assert (ours.subsets, ours.subset_size) == (SUBSETS, size)
    assert ours.mean == pytest.approx(expected[fidelity.KEY_METRIC_KID_MEAN], abs=1e-9)
    assert ours.std == pytest.approx(expected[fidelity.KEY_METRIC_KID_STD], abs=1e-9)


def test_kernel_distance_by_hand():
    one, other = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [0.0]])
    within = [np.mean([(x * y + 1) ** 3 for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
              for s in ((0, 1, 2), (1, 3, 0))]  # fmt: skip
    across = np.mean([(x * y + 1) ** 3 for x in (0, 1, 2) for y in (1, 3, 0)])
    ours = kernel_distance(one, other)
    assert (ours.subsets, ours.subset_size, ours.std) == (1, 3, 0)
    assert ours.mean == pytest.approx(sum(within) - 2 * across)


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    generator = torch.Generator().manual_seed(4)
    values = [kernel_distance(*torch.randn(2, 20, 6, generator=generator)).mean for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5
    assert min(values) < 0 < max(values)


def test_batches_do_not_matter():
    features = correlated(101, 40, shift=30.0)
    whole, cut = statistics(features), statistics(features, cuts=(1, 2, 50, 50, 90))
    torch.testing.assert_close(cut.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(cut.covariance, whole.covariance, rtol=0, atol=1e-10)
    expected = np.cov(features.double().numpy().T)
    np.testing.assert_allclose(whole.covariance.numpy(), expected, atol=1e-10)
    assert torch.equal(cut.features, features)
    assert statistics(features, keep_features=False).features is None


@pytest.mark.parametrize(
    ("other", "complaint"),
    [(Named("other"), "network noise and other"), (Named(weights_sha256="1" * 64), "weights_sha256")],
)
def test_features_of_different_networks_are_never_compared(other, complaint):
    features = correlated(10, 4)
    with pytest.raises(ValueError, match=complaint):
        frechet_distance(statistics(features), statistics(features, network=other))


def test_too_few_and_broken_features_are_refused():
    features = correlated(10, 4)
    with pytest.raises(ValueError, match="got 1 images"):
        frechet_distance(statistics(features[:1]), statistics(features))
    with pytest.raises(ValueError, match="1 and 10 images"):
        kernel_distance(features[:1], features)
    with pytest.raises(ValueError, match="got 4 and 3 features"):
        frechet_distance(statistics(features), statistics(features[:, :3]))
    with pytest.raises(ValueError, match="got NaN or infinity from noise"):
        statistics(features.log())
    with pytest.raises(ValueError, match="no image"):
        FeatureAccumulator(Named()).compute()
