"""The loop against the same steps written out by hand, and what it does when a loss diverges."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from smalti.data import Batch
from smalti.losses import LossTable
from smalti.quantizers import EMAVectorQuantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    DataError,
    NonFiniteLossError,
    OptimizationConfig,
    SkippedStep,
    StepResult,
    TokenizerObjective,
    choose_runtime,
    learning_rate,
    start_state,
    train_steps,
)

RUNTIME = choose_runtime("cpu", "fp32", channels_last=False)


def batches(count=None, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for n in itertools.count() if count is None else range(count):
        image = torch.rand(4, 3, size, size, generator=generator) * 2 - 1
        yield Batch(image, tuple(f"{n}-{k}.png" for k in range(4)), (None,) * 4)


def tiny(kind=VectorQuantizer):
    torch.manual_seed(0)
    return SimpleVQVAE(16, 4, 8, norm="none", quantizer=kind(16, 4, beta=0.3))


def train(state, stream, losses, config, runtime=RUNTIME):
    return train_steps(state, stream, TokenizerObjective(state.model, losses, runtime), config, runtime)


def test_three_steps_equal_the_same_steps_written_out():
    config = OptimizationConfig(steps=3, lr=0.01, warmup_steps=2, grad_clip=0.1, weight_decay=0.0, ema_decay=0.5)
    by_hand = tiny().double()
    by_hand.quantizer.embedding.weight.data = by_hand.quantizer.embedding.weight.data.double()  # it insists on fp32
    trainable = [p for p in by_hand.parameters() if p.requires_grad]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in trainable]
    average = [p.detach().clone() for p in by_hand.parameters()]
    state = start_state(tiny(), config, RUNTIME)
    results = list(train(state, batches(), LossTable({"l2": 2.0}), config))

    for t, batch in enumerate(batches(3), start=1):
        image = batch.image.double()
        by_hand.zero_grad()
        z = by_hand.encoder(image)
        distances = (z.movedim(1, -1).unsqueeze(-2) - by_hand.quantizer.embedding.weight).square().sum(-1)
        codes = F.embedding(distances.argmin(-1), by_hand.quantizer.embedding.weight).movedim(-1, 1)
        reconstruction = by_hand.decoder(z + (codes - z).detach())
        loss = 2 * F.mse_loss(reconstruction, image)
        loss = loss + F.mse_loss(codes, z.detach()) + 0.3 * F.mse_loss(z, codes.detach())
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in trainable]).norm()
        result = results[t - 1]
        assert result.step == t
        assert float(result.loss.total) == pytest.approx(loss.item(), rel=1e-4)
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert result.lr == learning_rate(config, t - 1) == pytest.approx([0.005, 0.01, 0.01][t - 1])
        decay = min(0.5, (1 + t) / (10 + t))
        with torch.no_grad():
            for p, (m, v) in zip(trainable, moments, strict=True):
                g = p.grad * min(1.0, 0.1 / norm)
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.99).add_(g * g, alpha=0.01)
                p -= result.lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
            for a, p in zip(average, by_hand.parameters(), strict=True):
                a.mul_(decay).add_(p, alpha=1 - decay)

    codebook = by_hand.quantizer.embedding.weight
    for (name, p), q, a, b in zip(
        by_hand.named_parameters(), state.model.parameters(), average, state.averaged.model.parameters(), strict=True
    ):
        # Adam divides by the root of tiny gradients, so fp32 agrees with float64 only to about 1e-3 of a step.
        torch.testing.assert_close(
            q.detach().double(), p.detach(), rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        expected = p.detach() if p is codebook else a
        torch.testing.assert_close(
            b.double(), expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_loop_goes_from_the_states_step_to_the_last_and_asks_for_no_batch_more():
    config = OptimizationConfig(steps=5)
    state = start_state(tiny(), config, RUNTIME)
    state.step = 3
    stream = batches(2)
    results = list(train(state, stream, LossTable({"l1": 1.0}), config))
    assert [result.step for result in results] == [4, 5]
    assert state.step == 5
    assert list(stream) == []


def test_each_result_comes_after_its_step_is_complete():
    config = OptimizationConfig(steps=3, ema_decay=0.0)
    state = start_state(tiny(), config, RUNTIME)
    for result in train(state, batches(), LossTable({"l1": 1.0}), config):
        assert state.step == result.step
        for p, average in zip(state.model.parameters(), state.averaged.model.parameters(), strict=True):
            assert torch.equal(p, average)
            assert p.grad is None


def test_the_quantizer_learns_in_the_forward_pass():
    config = OptimizationConfig(steps=3)
    model = SimpleVQVAE(8, 4, 8)  # a moving-average codebook, started by k-means
    before = model.quantizer.get_codebook().detach().clone()
    state = start_state(model, config, RUNTIME)
    list(train(state, batches(), LossTable({"l1": 1.0}), config))
    assert not torch.allclose(model.quantizer.get_codebook(), before)


def test_training_on_one_picture_learns_it():
    """A flat picture is one colour: a hundred steps must get close to it."""
    torch.manual_seed(0)
    config = OptimizationConfig(steps=100, lr=5e-3, warmup_steps=5, ema_decay=0.5)
    state = start_state(SimpleVQVAE(4, 4, 8), config, RUNTIME)
    image = torch.full((4, 3, 8, 8), -1.0)
    image[:, 0] = 0.5
    stream = itertools.repeat(Batch(image, ("a",) * 4, (None,) * 4))
    losses = [float(r.loss.terms["l1"]) for r in train(state, stream, LossTable({"l1": 1.0}), config)]
    assert losses[-1] < 0.2 * losses[0]
    averaged = state.averaged.model(image).reconstruction
    assert (averaged - image).abs().mean() < 0.2 * losses[0]


@pytest.mark.parametrize("layout", [True, False])
def test_bf16_and_layout_leave_the_result_close_and_the_weights_in_fp32(layout):
    config = OptimizationConfig(steps=3, lr=1e-3)
    plain, other = tiny(), tiny()
    for model, runtime in ((plain, RUNTIME), (other, choose_runtime("cpu", "bf16", channels_last=layout))):
        state = start_state(model, config, runtime)
        results = list(train(state, batches(), LossTable({"l1": 1.0}), config, runtime))
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert all(term.dtype == torch.float32 for term in results[-1].loss.terms.values())
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.1, atol=5e-3)


def weights_of(state):
    """What must not change: the trained weights, and all that the run delivers."""
    trained = {name: value.detach().clone() for name, value in state.model.named_parameters()}
    return trained, {name: value.clone() for name, value in state.averaged.model.state_dict().items()}


def assert_untouched(state, before):
    for old, new in zip(before, weights_of(state), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_term_stops_before_the_weights_are_touched(value):
    config = OptimizationConfig(steps=5)
    state = start_state(tiny(), config, RUNTIME)

    class Poisoned(LossTable):
        def __call__(self, image, output):
            if state.step == 2:
                output.quantizer_output.terms["commitment"] = output.quantizer_output.terms["commitment"] * value
            return super().__call__(image, output)

    steps = train(state, batches(), Poisoned({"l2": 1.0}), config)
    next(steps), next(steps)
    before = weights_of(state)
    with pytest.raises(NonFiniteLossError) as caught:
        next(steps)
    message = str(caught.value)
    for part in ("commitment", str(value), "step 3", "2-0.png, 2-1.png"):
        assert part in message
    assert "\n" not in message
    assert caught.value.exit_code == 4
    assert isinstance(caught.value, ValueError)
    assert_untouched(state, before)
    assert state.step == 2


def test_a_total_that_overflows_and_a_gradient_that_does_are_named():
    config = OptimizationConfig(steps=1)
    state = start_state(tiny(), config, RUNTIME)
    steps = train(state, batches(), LossTable({"l2": 3e38, "codebook": 3e38}), config)
    with pytest.raises(NonFiniteLossError, match=r"total loss became inf|gradient norm became inf"):
        next(steps)
    state = start_state(tiny(), config, RUNTIME)
    before = weights_of(state)
    next(state.model.decoder.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    steps = train(state, batches(), LossTable({"l2": 1.0}), config)
    with pytest.raises(NonFiniteLossError, match="gradient norm became nan at step 1"):
        next(steps)
    assert_untouched(state, before)


def test_long_batches_are_not_listed_in_full():
    config = OptimizationConfig(steps=1)
    state = start_state(tiny(), config, RUNTIME)
    batch = Batch(torch.zeros(20, 3, 8, 8), tuple(f"{k}.png" for k in range(20)), (None,) * 20)
    next(state.model.encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"7\.png and 12 more$"):
        next(train(state, iter([batch]), LossTable({"l1": 1.0}), config))


def poisoned(step, value=float("nan")):
    """Losses whose commitment term is broken at one step."""

    class Poisoned(LossTable):
        def __call__(self, image, output):
            if self.state.step == step - 1:
                output.quantizer_output.terms["commitment"] = output.quantizer_output.terms["commitment"] * value
            return super().__call__(image, output)

    return Poisoned({"l2": 1.0})


def test_a_skipped_batch_leaves_no_trace_and_is_counted():
    """Not even in a codebook that has already learned from it when the loss turns out to be NaN."""
    config = OptimizationConfig(steps=4, on_non_finite="skip", min_lr_ratio=1.0, warmup_steps=0)
    torch.manual_seed(0)
    state = start_state(SimpleVQVAE(8, 4, 8), config, RUNTIME)  # a moving-average codebook
    losses = poisoned(3)
    losses.state = state
    stream = list(batches(4))
    steps = train(state, iter(stream), losses, config)
    next(steps), next(steps)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    skipped = next(steps)
    assert isinstance(skipped, SkippedStep)
    assert "commitment became nan at step 3, on 2-0.png" in skipped.reason
    assert (state.step, state.skipped) == (3, 1)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert next(steps).step == 4


def test_nan_images_are_skipped_before_they_reach_anything():
    config = OptimizationConfig(steps=3, on_non_finite="skip")
    state = start_state(SimpleVQVAE(8, 4, 8), config, RUNTIME)
    good = next(batches(1))
    bad = Batch(torch.full_like(good.image, float("nan")), good.keys, good.labels)
    kinds = [type(r) for r in train(state, iter([good, bad, good]), LossTable({"l1": 1.0}), config)]
    assert kinds == [StepResult, SkippedStep, StepResult]
    assert all(value.isfinite().all() for value in state.model.state_dict().values())


@pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])
def test_pieces_add_up_to_the_batch(kind):
    """Two pieces, even of unequal size, give the step of the whole batch, to a codebook that learns by itself, too."""
    config = OptimizationConfig(steps=2, lr=0.01, warmup_steps=0)
    whole = list(batches(2))
    pieces = [
        Batch(batch.image[part], batch.keys[part], batch.labels[part])
        for batch in whole
        for part in (slice(0, 3), slice(3, 4))
    ]
    states = []
    for accumulate, stream in ((1, whole), (2, pieces)):
        setting = replace(config, accumulate=accumulate)
        state = start_state(tiny(kind).double(), setting, RUNTIME)
        results = list(train(state, iter(stream), LossTable({"l1": 1.0}), setting))
        states.append((state, results))
    (one, ones), (two, twos) = states
    for a, b in zip(ones, twos, strict=True):
        assert (a.images, b.images) == (4, 4)
        assert float(a.loss.total) == pytest.approx(float(b.loss.total), rel=1e-6)
        assert a.grad_norm == pytest.approx(float(b.grad_norm), rel=1e-5)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, two.model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_fp16_scales_the_loss_and_an_overflow_costs_one_step_and_half_the_scale():
    config = OptimizationConfig(steps=3, warmup_steps=0)
    runtime = choose_runtime("cpu", "fp16", channels_last=False)
    state = start_state(tiny(), config, runtime)
    assert state.scaler.get_scale() == 2.0**16
    steps = train(state, batches(), LossTable({"l1": 1.0}), config, runtime)
    first = next(steps)
    assert math.isfinite(first.grad_norm)
    scale, before = state.scaler.get_scale(), weights_of(state)[0]
    parameter = next(state.model.decoder.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    result = next(steps)
    assert result.grad_norm == float("inf") or math.isnan(result.grad_norm)
    assert state.scaler.get_scale() == scale / 2
    trained = {name: value for name, value in state.model.named_parameters() if "quantizer" not in name}
    assert all(torch.equal(value, before[name]) for name, value in trained.items())


def test_data_that_cannot_be_read_leaves_the_state_of_the_last_step():
    config = OptimizationConfig(steps=3)
    state = start_state(tiny(), config, RUNTIME)

    def stream():
        yield next(batches(1))
        raise OSError("the disk is gone")

    steps = train(state, stream(), LossTable({"l1": 1.0}), config)
    next(steps)
    before = weights_of(state)
    with pytest.raises(DataError, match="the disk is gone"):
        next(steps)
    assert state.step == 1
    assert_untouched(state, before)
