"""What an entropy coder starts from: whole counts, one for each stream of tokens, equal to counting the indices."""

import pytest
import torch
from torch import Tensor

from smalti.quantizers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
)

K, UNIT = 7, 1024


def table(dim: int = 4) -> VectorQuantizer:
    return VectorQuantizer(K, dim, decay=0.0)  # a moving average without memory: the counts of the last batch


def counted(indices: Tensor) -> Tensor:
    return torch.bincount(indices.flatten(), minlength=K) * UNIT


def trained(quantizer: Quantizer) -> tuple[Quantizer, Tensor | tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return quantizer, quantizer.train()(torch.randn(3, quantizer.embedding_dim, 5, 6)).indices


@pytest.mark.parametrize("make", [table, lambda: EMAVectorQuantizer(K, 4, decay=0.0)])
def test_a_table_counts_its_codes(make) -> None:
    quantizer, indices = trained(make())
    (count,) = quantizer.code_counts()
    assert torch.equal(count, counted(indices))


@pytest.mark.parametrize(
    "quantizer",
    [
        ResidualQuantizer([table() for _ in range(3)]),
        GroupedQuantizer([table() for _ in range(3)]),
        ProjectedQuantizer(5, ResidualQuantizer([table() for _ in range(3)])),
        GroupedQuantizer([ResidualQuantizer([table() for _ in range(2)]) for _ in range(2)]),
    ],
    ids=["residual", "grouped", "projected residual", "residuals in groups"],
)
def test_every_code_of_a_position_has_its_count(quantizer: Quantizer) -> None:
    quantizer, indices = trained(quantizer)
    parts = indices.flatten(3).unbind(dim=3)
    for count, part in zip(quantizer.code_counts(), parts, strict=True):
        assert torch.equal(count, counted(part))


def test_parts_with_one_table_share_its_count() -> None:
    quantizer, indices = trained(ResidualQuantizer([table()], num_quantizers=3))
    counts = quantizer.code_counts()
    assert len(counts) == 3
    assert all(torch.equal(count, counted(indices)) for count in counts)


@pytest.mark.parametrize("inner", [table(), ResidualQuantizer([table(), table()])], ids=["plain", "residual"])
def test_every_scale_has_its_count(inner: Quantizer) -> None:
    inner.decay = 0.0
    quantizer, scales = trained(MultiScaleQuantizer(K, 4, (1, 2, 5), quantizer=inner))
    parts = [part for scale in scales for part in scale.flatten(3).unbind(dim=3)] if inner.code_shape else scales
    for count, part in zip(quantizer.code_counts(), parts, strict=True):
        assert torch.equal(count, counted(part))


def test_who_has_not_counted_says_so() -> None:
    assert table().code_counts() is None
    assert MultiScaleQuantizer(K, 4, (1, 2)).code_counts() is None
    assert ResidualQuantizer([table(), table()]).code_counts() is None
    assert trained(FiniteScalarQuantizer([3, 3]))[0].code_counts() is None
