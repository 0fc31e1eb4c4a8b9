"""No N x K matrix, one-hot or of distances, exists at any moment of a training step with a large codebook."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smalti.quantizers import (
    CodebookQuantizer,
    DeadCodeRevival,
    EMAVectorQuantizer,
    KMeansInit,
    MultiScaleQuantizer,
    VectorQuantizer,
)

N, K, D = 4096, 8192, 4
ALIVE = {"init": KMeansInit(batches=1, iterations=2), "revival": DeadCodeRevival()}


class LargestTensor(TorchDispatchMode):
    """Watches every tensor that any operation returns, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.what = 0, "nothing"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel() > self.numel:
                self.numel, self.what = leaf.numel(), f"{func} {tuple(leaf.shape)}"
        return result


def test_the_watcher_sees_a_one_hot_matrix() -> None:
    """The check must fail on the textbook version."""
    codebook = torch.randn(K, D, requires_grad=True)
    with LargestTensor() as largest:
        one_hot = torch.nn.functional.one_hot(torch.randint(0, K, (N,)), K)
        (one_hot[:8].float() @ codebook).sum().backward()
    assert largest.numel >= N * K


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantizer(K, D),
        lambda: VectorQuantizer(K, D, metric="cosine", **ALIVE),
        lambda: EMAVectorQuantizer(K, D, **ALIVE),
    ],
    ids=["gradient", "cosine alive", "ema alive"],
)
def test_training_step_of_a_large_codebook(make: Callable[[], CodebookQuantizer]) -> None:
    quantizer, z = make(), torch.randn(1, D, 64, 64, requires_grad=True)
    with LargestTensor() as largest:
        output = quantizer(z)
        (output.loss + output.quantized.sum()).backward()
        quantizer.decode(quantizer.encode(z.detach()))
    assert largest.numel <= N * K // 4, largest.what


def test_training_step_of_many_scales() -> None:
    quantizer = MultiScaleQuantizer(K, D, (1, 2, 4, 8, 16, 32, 64))
    with LargestTensor() as largest:
        quantizer(torch.randn(1, D, 64, 64, requires_grad=True)).loss.backward()
    assert largest.numel <= N * K // 4, largest.what
