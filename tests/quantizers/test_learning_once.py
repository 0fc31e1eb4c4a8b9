"""A codebook learns once an optimizer step: under activation checkpointing, over micro-batches, in compiled graphs."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from clean_interpreter import CleanInterpreter
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smalti.quantizers import (
    DeadCodeRevival,
    EMAVectorQuantizer,
    GroupedQuantizer,
    KMeansInit,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    one_codebook_update,
)

ALIVE = {"init": KMeansInit(batches=2, iterations=3), "revival": DeadCodeRevival(0.5), "decay": 0.5}
MAKERS: dict[str, Callable[[], Quantizer]] = {
    "ema": lambda: EMAVectorQuantizer(8, 4, **ALIVE),
    "vector": lambda: VectorQuantizer(8, 4, metric="cosine", **ALIVE),
    "residual": lambda: ResidualQuantizer([EMAVectorQuantizer(8, 4, **ALIVE) for _ in range(2)]),
    "shared residual": lambda: ResidualQuantizer([EMAVectorQuantizer(8, 4, **ALIVE)], num_quantizers=2),
    "grouped": lambda: GroupedQuantizer([EMAVectorQuantizer(8, 2, **ALIVE) for _ in range(2)]),
    "projected": lambda: ProjectedQuantizer(4, EMAVectorQuantizer(8, 3, metric="cosine", **ALIVE)),
    "multi-scale": lambda: MultiScaleQuantizer(8, 4, (1, 3), quantizer=EMAVectorQuantizer(8, 4, **ALIVE)),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Net(nn.Module):
    """A quantizer between two layers, as in a tokenizer."""

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = nn.Conv2d(4, 4, 1), quantizer, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        output = self.quantizer(self.encoder(x))
        return (self.decoder(output.quantized) - x).square().mean() + output.loss


def assert_same(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> None:
    """Weights, buffers and gradients."""
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=tolerance, atol=tolerance, msg=name)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance, msg=name)


@EVERY
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(make: Callable[[], Quantizer], use_reentrant: bool) -> None:
    """State and gradients equal those without it: the repeated pass learns nothing and sees the codes of the first.

    First the codebook learns in each pass, then at the end of each step, then it is frozen.
    """
    plain = Net(make())
    repeated = copy.deepcopy(plain)
    for step in range(9):
        x = torch.randn(2, 4, 3, 3, requires_grad=True)
        for net in (plain, repeated):
            net.zero_grad()
            torch.manual_seed(step)
            if step == 7:
                net.quantizer.freeze()
            with one_codebook_update(net) if 4 <= step < 7 else nullcontext():
                loss = net(x) if net is plain else checkpoint(net, x, use_reentrant=use_reentrant)
                loss.backward()
        assert_same(plain, repeated, tolerance=1e-6)


@EVERY
def test_micro_batches_are_one_batch(make: Callable[[], Quantizer]) -> None:
    """After the batches of k-means, which looks at the first micro-batch alone."""
    whole = Net(make())
    for _ in range(2):
        whole(torch.randn(6, 4, 3, 3))
    pieces = copy.deepcopy(whole)
    for step in range(3):
        x = torch.randn(6, 4, 3, 3)
        whole.zero_grad(), pieces.zero_grad()
        torch.manual_seed(step)
        whole(x).backward()
        torch.manual_seed(step)
        with one_codebook_update(pieces):
            for piece in x.chunk(3):
                (pieces(piece) / 3).backward()
        if isinstance(whole.quantizer, MultiScaleQuantizer):  # a moving average of usage alone follows each pass
            pieces.quantizer.scale_usage.copy_(whole.quantizer.scale_usage)
        assert_same(whole, pieces, tolerance=1e-5)
    seen = [m.batches_seen for m in pieces.modules() if hasattr(m, "batches_seen")]
    assert {int(batches) for batches in seen} == {5}


def test_k_means_starts_once_in_a_step() -> None:
    vq = EMAVectorQuantizer(4, 2, init=KMeansInit(batches=1))
    with one_codebook_update(vq):
        vq(torch.randn(1, 2, 50))
        codes = vq.get_codebook().clone()
        vq(torch.randn(1, 2, 50) + 100)
        assert torch.equal(vq.get_codebook(), codes)
    assert int(vq.batches_seen) == 1


def failing_step(vq: Quantizer) -> None:
    with one_codebook_update(vq):
        vq(torch.randn(1, 2, 50))
        raise ValueError("channels")


def test_a_step_that_fails_teaches_nothing() -> None:
    vq = EMAVectorQuantizer(4, 2)
    before = copy.deepcopy(vq.state_dict())
    with pytest.raises(ValueError, match="channels"):
        failing_step(vq)
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())
    vq(torch.randn(1, 2, 50))
    assert int(vq.batches_seen) == 1


def in_graphs() -> None:
    """Train compiled and not, side by side; in a process of its own, as the tests' import hook cannot be compiled."""
    torch.manual_seed(0)
    plain = Net(MAKERS["ema"]())
    compiled = copy.deepcopy(plain)
    forward = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(4):
        x = torch.randn(2, 4, 3, 3)
        for net, call in ((plain, plain), (compiled, forward)):
            net.zero_grad()
            torch.manual_seed(step)
            call(x).backward()
        assert_same(plain, compiled, tolerance=1e-5)


def test_training_compiles_without_a_break(clean: CleanInterpreter) -> None:
    code = f"import runpy; runpy.run_path({str(Path(__file__))!r})['in_graphs']()"
    result = clean.run("-c", code)
    assert result.returncode == 0, result.stdout + result.stderr
