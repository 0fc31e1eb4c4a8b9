"""Inception Score against torch-fidelity, and against its two ends."""

import pytest
import torch
from fidelity import torch_fidelity

from smalti.metrics import inception_score


@pytest.mark.parametrize("count", [10, 57, 200])
def test_it_is_that_of_torch_fidelity(count):
    fidelity = torch_fidelity().metric_isc
    logits = torch.randn(count, 30) * 3
    expected = fidelity.isc_features_to_metric(logits)
    ours = inception_score(logits)
    assert ours.mean == pytest.approx(expected[fidelity.KEY_METRIC_ISC_MEAN], rel=1e-12)
    assert ours.std == pytest.approx(expected[fidelity.KEY_METRIC_ISC_STD], rel=1e-9)


def test_images_that_look_alike_score_1_and_sure_even_ones_the_number_of_classes():
    alike = torch.randn(1, 5).expand(100, 5)
    assert inception_score(alike).mean == pytest.approx(1)
    sure = 100 * torch.eye(5).repeat(4000, 1)
    assert inception_score(sure).mean == pytest.approx(5, rel=0.01)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="got 9 images"):
        inception_score(torch.randn(9, 5))
