"""k-means: a fixed point of Lloyd's two steps, with counts that agree."""

import numpy as np
import torch

from smalti.ops import kmeans
from smalti.ops.kmeans import sample_vectors


def lloyd(z: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Textbook k-means in float64, for starts where no centre ever becomes empty."""
    for _ in range(iterations):
        nearest = ((z[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        centres = np.stack([z[nearest == k].mean(0) for k in range(len(centres))])
    return centres


def test_follows_the_textbook_step_by_step() -> None:
    z, start = torch.randn(400, 3), torch.randn(6, 3)
    for iterations in (1, 2, 7):
        centres, counts = kmeans(z, start, iterations)
        expected = lloyd(z.double().numpy(), start.double().numpy(), iterations)
        np.testing.assert_allclose(centres.numpy(), expected, atol=1e-4)
        nearest = ((z.double().numpy()[:, None] - expected[None]) ** 2).sum(-1).argmin(1)
        np.testing.assert_array_equal(counts.numpy(), np.bincount(nearest, minlength=6))


def test_finds_separate_clusters() -> None:
    means = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    z = means.repeat_interleave(100, dim=0) + torch.randn(300, 2) * 0.1
    centres, counts = kmeans(z, z[[0, 100, 200]])
    torch.testing.assert_close(centres, means, atol=0.05, rtol=0)
    assert counts.tolist() == [100, 100, 100]


def test_no_centre_stays_empty_while_there_are_vectors() -> None:
    z = torch.randn(200, 4)
    far = torch.full((8, 4), 1000.0)  # seven of eight attract nothing at first
    _, counts = kmeans(z, far)
    assert int(counts.min()) > 0
    assert int(counts.sum()) == 200


def test_more_centres_than_vectors_all_lie_on_vectors() -> None:
    z = torch.randn(5, 4)
    centres, counts = kmeans(z, torch.randn(12, 4))
    distance = (centres[:, None] - z[None]).abs().sum(-1).min(1).values
    assert distance.max() < 1e-5
    assert int(counts.sum()) == 5


def test_half_precision_input_is_computed_in_fp32() -> None:
    z, start = torch.randn(300, 4).half(), torch.randn(5, 4).half()
    centres, _ = kmeans(z, start)
    assert centres.dtype == torch.float32
    torch.testing.assert_close(centres, kmeans(z.float(), start.float())[0], rtol=0, atol=0)


def test_samples_are_distinct_as_far_as_possible() -> None:
    z = torch.arange(10.0).unsqueeze(1)
    assert sorted(sample_vectors(z, 10).flatten().tolist()) == list(range(10))
    assert len(set(sample_vectors(z, 4).flatten().tolist())) == 4
    assert sorted(sample_vectors(z, 25).flatten().tolist())[::1].count(3.0) in (2, 3)
    assert sample_vectors(z, 0).shape == (0, 1)
