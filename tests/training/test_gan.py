"""The adversarial phase: its schedule, one step against the same written out, and that it does not ruin the model."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training.gan_steps import train_with_gan

from smalti.data import Batch, TransformConfig, open_images, training_batches
from smalti.losses import LossTable
from smalti.quantizers import DeadCodeRevival, KMeansInit, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    AdversarialConfig,
    GANTrainer,
    NonFiniteLossError,
    OptimizationConfig,
    SkippedStep,
    TokenizerObjective,
    choose_runtime,
    start_state,
    train_steps,
)
from smalti.training.accumulation import Part
from smalti.training.gan.trainer import GANStep, last_layer
from smalti.zoo import build

RUNTIME = choose_runtime("cpu", "fp32", channels_last=False)
SMALL = AdversarialConfig(hidden_dim=4, num_layers=1, norm="none", disc_start=4, disc_warmup=2, disc_ramp=1)
OPTIMIZATION = OptimizationConfig(steps=10, lr=1e-2, warmup_steps=0)
WEIGHTS = {"l1": 1.0, "adversarial": 0.5}


def batches(channels=3, size=12):
    generator = torch.Generator().manual_seed(0)
    while True:
        image = torch.rand(4, channels, size, size, generator=generator) * 2 - 1
        yield Batch(image, ("a.png", "b.png", "c.png", "d.png"), (None,) * 4)


def start(config=SMALL, weights=WEIGHTS, optimization=OPTIMIZATION, runtime=RUNTIME, alive=False, **model):
    torch.manual_seed(0)
    random = {"init": KMeansInit(), "revival": DeadCodeRevival(threshold=0.9)} if alive else {}
    quantizer = VectorQuantizer(16, 4, **random)
    tokenizer = SimpleVQVAE(16, 4, 8, norm="none", quantizer=quantizer, **model)
    state, losses = start_state(tokenizer, optimization, runtime), LossTable(weights)
    gan = None if config is None else GANTrainer(config, losses, state, optimization, runtime)
    return state, losses, gan


def train(state, losses, gan, stream=None, optimization=OPTIMIZATION, runtime=RUNTIME):
    stream, objective = batches() if stream is None else stream, TokenizerObjective(state.model, losses, runtime)
    return train_steps(state, stream, objective, optimization, runtime, gan)


def run(steps, *args, stream=None, runtime=RUNTIME, **kwargs):
    state, losses, gan = start(*args, runtime=runtime, **kwargs)
    optimization = kwargs.get("optimization", OPTIMIZATION)
    training = train(state, losses, gan, stream, optimization, runtime)
    return state, list(itertools.islice(training, steps))


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disc_start", "warmup", "expected"),
    [("30%", 0, 300), ("0%", 0, 0), ("12.5%", 0, 125), (700, 500, 700), (100, 500, 500), ("30%", 400, 400)],
)
def test_the_start_is_steps_or_a_share_of_them_and_leaves_room_for_the_warm_up(disc_start, warmup, expected):
    assert AdversarialConfig(disc_start=disc_start, disc_warmup=warmup).start(1000) == expected


def test_the_ramp_rises_evenly_and_stays():
    config = AdversarialConfig(disc_start=10, disc_warmup=0, disc_ramp=3)
    assert [config.ramp(step, 100) for step in (0, 9, 10, 11, 12, 13, 50)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert replace(config, disc_ramp=0).ramp(10, 100) == 1


def test_four_parts_of_a_run():
    """Nothing, warm-up, ramp, full weight."""
    state, losses, gan = start()
    fresh = copied(gan.discriminator)
    training = train(state, losses, gan)
    for step in range(4):
        result = next(training)
        assert "adversarial" not in result.loss.terms
        assert (result.discriminator is None) == (step < 2)
        assert same(copied(gan.discriminator), fresh) == (step < 2)
    for ramp in (0.5, 1.0, 1.0):
        result = next(training)
        expected = 0.5 * ramp * float(result.discriminator.adaptive_weight)
        assert float(result.loss.weights["adversarial"]) == pytest.approx(expected)
        assert result.discriminator.adaptive_weight > 0


def test_until_its_loss_counts_the_tokenizer_is_that_of_a_run_without_it():
    """Also where the codebook draws random numbers."""
    for steps, equal in ((4, True), (5, False)):
        alone, opposed = run(steps, None, alive=True)[0], run(steps, alive=True)[0]
        assert same(copied(alone.model), copied(opposed.model)) == equal


# ---- what ------------------------------------------------------------------------------------------------------------


def test_a_step_equals_the_same_written_out():
    """Hinge, adaptive weight, R1 and LeCam; both sides' gradients come from the same weights of both networks."""
    weights = {**WEIGHTS, "r1": 3.0, "lecam": 0.2}
    config = replace(SMALL, disc_start=1, disc_warmup=1, disc_ramp=0, lr_ratio=0.5)
    optimization = replace(OPTIMIZATION, weight_decay=0.0, grad_clip=float("inf"))
    state, losses, gan = start(config, weights, optimization)
    training = train(state, losses, gan, optimization=optimization)
    next(training)
    tokenizer, _, _ = start(None)
    tokenizer = tokenizer.model
    tokenizer.load_state_dict(state.model.state_dict())
    tokenizer.train()
    discriminator = gan.discriminator
    before = {name: p.detach().clone().requires_grad_() for name, p in discriminator.named_parameters()}
    lecam = gan.objective.lecam
    averages = lecam.real.item(), lecam.fake.item()
    result = next(training)

    def judge(x):
        return torch.func.functional_call(discriminator, before, x)

    image = result.outputs[0].image
    output = tokenizer(image)
    pixel = (output.reconstruction - image).abs().mean()
    adversarial = -judge(output.reconstruction).mean()
    last = tokenizer.decoder.layers[-1].weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (pixel, adversarial)]
    adaptive = norms[0] / (norms[1] + 1e-6)
    total = pixel + output.quantizer_output.loss + 0.5 * adaptive.detach() * adversarial
    assert result.discriminator.adaptive_weight == pytest.approx(adaptive.item(), rel=1e-4)
    assert result.loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    gradient = torch.autograd.grad(total, list(tokenizer.parameters()))
    assert result.grad_norm == pytest.approx(torch.cat([g.flatten() for g in gradient]).norm().item(), rel=1e-3)

    real_image = image.clone().requires_grad_()
    real, fake = judge(real_image), judge(output.reconstruction.detach())
    hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    (slope,) = torch.autograd.grad(real.sum(), real_image, create_graph=True)
    penalty = slope.square().sum() / 2 / real.numel()
    lecam = (real - averages[1]).square().mean() + (fake - averages[0]).square().mean()
    expected = {"discriminator": hinge, "r1": penalty, "lecam": lecam}
    assert result.discriminator.loss.weights == {"discriminator": 1.0, "r1": 3.0, "lecam": 0.2}
    for name, value in expected.items():
        assert result.discriminator.loss.terms[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert result.discriminator.logits_real == pytest.approx(real.mean().item(), rel=1e-4)
    assert result.discriminator.logits_fake == pytest.approx(fake.mean().item(), rel=1e-4)
    right = torch.cat([(real > 0).flatten(), (fake < 0).flatten()]).float().mean()
    assert result.discriminator.accuracy == pytest.approx(right.item())

    gradients = torch.autograd.grad(hinge + 3 * penalty + 0.2 * lecam, list(before.values()))
    momentum = dict(zip(before, gan.optimizer.state_dict()["state"].values(), strict=True))
    for (name, parameter), gradient in zip(before.items(), gradients, strict=True):
        # Two Adam steps with betas 0.5 and 0.9; the moments of the first are what is left when this one is taken out.
        m = momentum[name]["exp_avg"]
        v = momentum[name]["exp_avg_sq"]
        lr = 0.5 * result.lr
        stepped = parameter - lr * (m / (1 - 0.5**2)) / ((v / (1 - 0.9**2)).sqrt() + 1e-8)
        torch.testing.assert_close(discriminator.get_parameter(name).detach(), stepped.detach(), rtol=1e-4, atol=1e-6)
        former = (m - 0.5 * gradient) / 0.5  # the first step's average was half its gradient
        torch.testing.assert_close(v, 0.9 * 0.1 * (2 * former).square() + 0.1 * gradient.square(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_each_total_is_the_weighted_sum_of_its_terms(loss):
    _, results = run(8, replace(SMALL, loss=loss), {**WEIGHTS, "ms_ssim": 0.3, "r1": 10.0, "lecam": 0.01})
    assert set(results[-1].loss.terms) == {"l1", "ms_ssim", "codebook", "commitment", "adversarial"}
    assert set(results[-1].discriminator.loss.terms) == {"discriminator", "r1", "lecam"}
    for result in results:
        for each in [result.loss, *([result.discriminator.loss] if result.discriminator else [])]:
            total = sum(float(each.weights[name]) * term.item() for name, term in each.terms.items())
            assert each.total.item() == pytest.approx(total, rel=1e-6, abs=1e-6)


def test_neither_side_leaves_a_gradient_in_the_other():
    state, losses, gan = start(replace(SMALL, disc_start=0, disc_warmup=0))
    image = next(batches()).image
    output = state.model.train()(image)
    step = gan.begin_step(5)
    loss = step.generator_loss(losses(image, output), output.reconstruction)
    loss.total.backward()
    assert all(parameter.grad is None for parameter in gan.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in gan.discriminator.parameters())
    gradients = [parameter.grad.clone() for parameter in state.model.parameters()]
    step.update_discriminator([Part((image,), 1.0, ("a",))], [output.reconstruction.detach()], 1e-3, state.check)
    assert all(torch.equal(p.grad, g) for p, g in zip(state.model.parameters(), gradients, strict=True))


def test_a_discriminator_that_is_left_to_learn_tells_images_from_bad_reconstructions():
    optimization = OptimizationConfig(steps=200, lr=1e-6, warmup_steps=0)
    config = replace(SMALL, disc_start=150, disc_warmup=100, lr_ratio=1e3)
    _, results = run(140, config, WEIGHTS, optimization=optimization)
    assert results[-1].discriminator.accuracy > 0.85
    assert results[-1].discriminator.logits_real > 0.2 > -0.2 > results[-1].discriminator.logits_fake


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 33])
def test_any_image_and_every_option_at_once_under_bf16(channels, size):
    config = replace(
        SMALL, num_layers=3, hidden_dim=16, norm="group", spectral_norm=True, augment=("color", "translation", "cutout")
    )
    runtime = choose_runtime("cpu", "bf16")
    weights = {**WEIGHTS, "r1": 1.0, "lecam": 0.1}
    state, results = run(6, config, weights, stream=batches(channels, size), runtime=runtime, image_channels=channels)
    assert results[-1].loss.terms["adversarial"].isfinite()
    assert results[-1].loss.total.dtype == results[-1].discriminator.loss.total.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in state.modules["adversary"].parameters())


@pytest.mark.parametrize("reduced", ["bf16", "fp16"])
def test_half_precision_changes_the_numbers_but_little(reduced):
    results = [
        run(6, SMALL, {**WEIGHTS, "r1": 1.0}, runtime=choose_runtime("cpu", precision))[1][-1].discriminator
        for precision in ("fp32", reduced)
    ]
    assert results[1].adaptive_weight == pytest.approx(float(results[0].adaptive_weight), rel=0.1)
    for name in ("discriminator", "r1"):
        one, other = (result.loss.terms[name].item() for result in results)
        assert other == pytest.approx(one, rel=0.1), name


def test_pairs_can_be_augmented_alike():
    seen = []
    config = replace(SMALL, disc_start=0, disc_warmup=0, augment=("color", "translation"), augment_pairs=True)
    state, _, gan = start(config)
    gan.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = next(batches()).image
    gan.begin_step(5).update_discriminator([Part((image,), 1.0, ("a",))], [image], 1e-3, state.check)
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], image)


# ---- what can go wrong -----------------------------------------------------------------------------------------------


def test_a_discriminator_that_diverges_stops_the_run_before_any_weight_is_touched():
    state, losses, gan = start()
    training = train(state, losses, gan)
    for _ in range(3):
        next(training)
    with torch.no_grad():
        next(gan.discriminator.parameters()).fill_(float("nan"))
    before = copied(state.model)
    with pytest.raises(NonFiniteLossError, match=r"discriminator became nan at step 4, on a\.png, b\.png"):
        next(training)
    trained = [name for name, _ in state.model.named_parameters()]
    assert all(torch.equal(before[name], state.model.state_dict()[name]) for name in trained)


@pytest.mark.parametrize("bad", [{1}, {5, 6}, {1, 2, 5, 6, 7}])
def test_fp16_skips_any_number_of_batches_that_the_discriminator_cannot_judge(monkeypatch, bad):
    """A skipped step changes neither weights nor the scale of the loss, wherever in the step the number went bad."""
    optimization = replace(OPTIMIZATION, on_non_finite="skip")
    runtime = choose_runtime("cpu", "fp16", channels_last=False)
    state, losses, gan = start(replace(SMALL, disc_start=2, disc_warmup=2), optimization=optimization, runtime=runtime)
    update, clip, broken = GANStep.update_discriminator, state.clip_gradients, torch.tensor(float("nan"))

    def fail_late(*arguments):
        if state.step + 1 in bad - {6}:
            state.check.see({"discriminator": broken}, broken.reshape(1), ())
        return update(*arguments)

    def fail_early(*arguments):
        norm = clip(*arguments)
        if state.step + 1 == 6 in bad:
            state.check.see({"gradient norm": broken}, broken.reshape(1), ())
        return norm

    monkeypatch.setattr(GANStep, "update_discriminator", fail_late)
    monkeypatch.setattr(state, "clip_gradients", fail_early)
    steps = train(state, losses, gan, None, optimization, runtime)
    for number in range(1, 9):
        before, scale = (copied(state.model), copied(gan.objective)), state.scaler.get_scale()
        result = next(steps)
        assert isinstance(result, SkippedStep) == (number in bad)
        for old, module in zip(before, (state.model, gan.objective), strict=True):
            assert same(old, copied(module)) == (number in bad)
        assert state.scaler.get_scale() == scale
    assert state.skipped == len(bad)


def test_fp16_skips_a_batch_before_any_loss_was_scaled():
    optimization = replace(OPTIMIZATION, on_non_finite="skip")
    runtime = choose_runtime("cpu", "fp16", channels_last=False)
    good = batches()
    first = next(good)
    stream = itertools.chain([Batch(first.image * float("nan"), first.keys, first.labels)], good)
    _, results = run(3, SMALL, WEIGHTS, optimization=optimization, stream=stream, runtime=runtime)
    assert [isinstance(result, SkippedStep) for result in results] == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "wasserstein"}, "loss: got 'wasserstein'"),
        ({"disc_start": "30"}, "disc_start: got '30'"),
        ({"disc_start": "130%"}, "disc_start: got '130%'"),
        ({"disc_start": -1}, "disc_start: got -1"),
        ({"disc_warmup": -1}, "disc_warmup: got -1"),
        ({"disc_ramp": -1}, "disc_ramp: got -1"),
        ({"max_adaptive_weight": 0.0}, "max_adaptive_weight: got 0"),
        ({"lr_ratio": float("inf")}, "lr_ratio: got inf"),
        ({"hidden_dim": 0}, "hidden_dim: got 0"),
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"norm": "layer"}, "norm: got 'layer'"),
        ({"augment": ("blur",)}, r"augment: got \['blur'\], expected some of color, translation, cutout"),
        ({"betas": (0.5, 1.0)}, "betas: got"),
    ],
)
def test_impossible_settings_are_refused(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        AdversarialConfig(**changes)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="disc_start: got 10, expected less than the run's 10 steps"):
        start(replace(SMALL, disc_start=10))
    raised = "disc_start: got 2, expected less than the run.s .* steps; disc_warmup raises it to 500"
    with pytest.raises(ValueError, match=raised):
        start(replace(SMALL, disc_start=2, disc_warmup=500))
    with pytest.raises(ValueError, match=r"norm: got 'batch', expected group or none with r1"):
        start(replace(SMALL, norm="batch"), {**WEIGHTS, "r1": 1.0})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("simple", {"hidden_dim": 16}),
        ("vqgan-f8", {"encoder": {"widths": [32, 32], "latent_channels": 4}}),
        ("titok-s128", {"image_size": 32, "num_latent_tokens": 4, "pixel_decoder": None,
                        "encoder": {"patch_size": 16, "width": 32, "layers": 1, "num_heads": 2}}),
    ],
)  # fmt: skip
def test_the_last_layer_is_the_one_that_runs_last(name, changes):
    torch.manual_seed(0)
    model, ran = build(name, **changes).eval(), []
    for module in model.decoder.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(lambda module, *_: ran.append(module.weight))
    model(torch.zeros(1, 3, 32, 32))
    assert last_layer(model.decoder) is ran[-1]


# ---- the phase does not ruin the model -------------------------------------------------------------------------------


def reconstruction_losses(weights, **changes):
    """The pixel loss after each step of a small run on crops of the embedded photographs."""
    torch.manual_seed(1)
    optimization = OptimizationConfig(steps=240, lr=1e-3, warmup_steps=20)
    state, losses = start_state(SimpleVQVAE(64, 8, 32), optimization, RUNTIME), LossTable(weights)
    config = AdversarialConfig(hidden_dim=16, num_layers=2, disc_start=130, disc_warmup=60, disc_ramp=60)
    gan = GANTrainer(replace(config, **changes), losses, state, optimization, RUNTIME)
    transform = TransformConfig(size=32, crop="random", zoom=2.0, flip=True)
    stream = training_batches(open_images("embedded"), transform, 4, seed=0)
    return (r.loss.terms["l1"].item() for r in train(state, losses, gan, stream, optimization))


def test_reconstructions_survive_the_start_with_the_defaults_and_do_not_without():
    """100 steps after it the loss is at most 1.5 x that before; without warm-up, ramp and adaptive weight it is not."""

    weights = {"l1": 1.0, "adversarial": 1.0}
    guarded = list(reconstruction_losses(weights))
    before = sum(guarded[110:130]) / 20
    after = [sum(guarded[n : n + 20]) / 20 for n in range(130, 221)]
    assert after[-1] < before
    assert max(after) < 1.2 * before
    bare = []
    for loss in reconstruction_losses(weights, disc_warmup=0, disc_ramp=0, adaptive_weight=False):
        bare.append(loss)
        if len(bare) >= 150 and sum(bare[-20:]) / 20 > 1.5 * before:
            break
    else:
        pytest.fail("the reconstructions survived")
    assert bare[:130] == guarded[:130]


# ---- several processes, several pieces -------------------------------------------------------------------------------


def assert_equal_runs(one, other, apart_from=()):
    for mine, yours in zip(one["numbers"], other["numbers"], strict=True):
        assert mine == pytest.approx(yours, rel=1e-4, abs=1e-5)
    for part in ("tokenizer", "discriminator", "averaged"):
        for name, tensor in one[part].items():
            if name.split(".")[-1] in apart_from:
                continue
            # Adam divides by the root of tiny gradients, so rounding shows in some weights.
            torch.testing.assert_close(
                tensor, other[part][name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_two_processes_learn_as_one_on_the_joined_batch(clean, tmp_path):
    clean.train_together(Path(__file__).with_name("gan_steps.py"), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["numbers"] == second["numbers"], "the adaptive weight too is equal everywhere"
    for part in ("tokenizer", "discriminator", "averaged"):
        assert same(first[part], second[part])
    alone = train_with_gan(RUNTIME)
    assert len(alone["numbers"][-1]) > 8
    assert_equal_runs(first, alone)


def test_pieces_change_nothing_but_where_the_adaptive_weight_is_measured(monkeypatch):
    monkeypatch.setattr("smalti.training.gan.trainer.adaptive_weight", lambda *args: torch.tensor(0.3))
    # Spectral norm takes a step toward its singular vectors at each forward pass, so at each piece; codes are counted.
    pieces, whole = (
        train_with_gan(RUNTIME, accumulate=4, spectral_norm=False),
        train_with_gan(RUNTIME, spectral_norm=False),
    )
    assert_equal_runs(pieces, whole, apart_from=("cluster_size", "batches_seen"))
