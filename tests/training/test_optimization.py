"""Learning rate and AdamW against hand-derived values; what decays and what does not."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import small_priors
import torch
from torch import nn

from smalti.blocks.titok import TiTokEncoder
from smalti.blocks.transformer import ViTConfig
from smalti.quantizers import (
    EMAVectorQuantizer,
    GumbelQuantizer,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from smalti.training import OptimizationConfig, build_optimizer, learning_rate
from smalti.training.optimization import parameter_groups, regrouped


class Net(nn.Module):
    """One of everything: kernel, bias, norm, codebook."""

    def __init__(self, quantizer):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.quantizer = quantizer


def test_learning_rate_rises_linearly_then_falls_along_a_cosine():
    config = OptimizationConfig(steps=110, lr=0.5, warmup_steps=10, min_lr_ratio=0.2)
    rates = [learning_rate(config, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.05 * (n + 1) for n in range(10)])
    assert rates[10] == 0.5
    assert rates[-1] == pytest.approx(0.1)
    # A quarter of the way down a half-cosine has gone (1 - cos 45°) / 2 of the way; 99 intervals from step 10 to 109.
    quarter = 0.5 - 0.4 * (1 - math.cos(math.pi / 4)) / 2
    between = rates[34] * 0.25 + rates[35] * 0.75  # step 10 + 24.75
    assert between == pytest.approx(quarter, rel=1e-4)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_learning_rate_stays_up_until_the_last_decay_steps():
    """More steps leave the plateau as it was: a run that is still on it can be extended."""
    config = OptimizationConfig(steps=100, lr=1.0, warmup_steps=10, decay_steps=20, min_lr_ratio=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[10:80] == [1.0] * 70
    assert rates[79:] == sorted(rates[79:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    longer = replace(config, steps=200)
    assert [learning_rate(longer, step) for step in range(80)] == rates[:80]
    assert learning_rate(replace(config, decay_steps=500), 55) == learning_rate(replace(config, decay_steps=None), 55)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 100), (5, 5), (2, 1)])
def test_learning_rate_of_very_short_runs_is_positive_and_at_most_lr(steps, warmup):
    config = OptimizationConfig(steps=steps, lr=1.0, warmup_steps=warmup)
    assert all(0 < learning_rate(config, step) <= 1.0 for step in range(steps))


def test_learning_rate_stays_at_its_end_beyond_the_last_step():
    config = OptimizationConfig(steps=10, lr=1.0, warmup_steps=0, min_lr_ratio=0.1)
    assert learning_rate(config, 50) == pytest.approx(0.1)


def test_only_kernels_decay():
    net = Net(VectorQuantizer(8, 4))
    decayed, kept = parameter_groups(net, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(net.conv.weight)]
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    expected = {id(net.conv.bias), id(net.norm.weight), id(net.norm.bias), id(net.quantizer.embedding.weight)}
    assert {id(p) for p in kept["params"]} == expected


EMA = MultiScaleQuantizer(8, 4, (1, 2), quantizer=EMAVectorQuantizer(8, 4), num_phi=1)
LEARNERS = {
    "SimVQ": (SimVQ(8, 4), set()),
    "projected": (ProjectedQuantizer(6, VectorQuantizer(8, 4)), {"project_in.weight", "project_out.weight"}),
    "Gumbel": (GumbelQuantizer(8, 4), {"proj.weight"}),
    "residual": (ResidualQuantizer([VectorQuantizer(8, 4), VectorQuantizer(8, 4)]), set()),
    "multi-scale": (EMA, {"phis.0.conv.weight"}),
    "TiTok": (TiTokEncoder(ViTConfig(8, 1, 2, patch_size=4), 8, 3, 2, 4, interleaved=False), {
        "patch_embedding.weight", "layers.0.attention.qkv.weight", "layers.0.attention.out.weight",
        "layers.0.mlp.0.weight", "layers.0.mlp.2.weight", "projection.weight"}),
    "next scale": (small_priors.next_scale(depth=1, shared_adaln=True, l2_attention=True), {
        "word_embedding.weight", "shared_modulation.weight", "head_modulation.weight", "head.weight",
        *(f"blocks.0.{name}.weight" for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down"))}),
    "next token": (small_priors.next_token(small_priors.DEEP, depth=1), {"head.weight", *(
        f"blocks.0.{name}.weight" for name in ("attention.qkv", "attention.out", "mlp.gate", "mlp.up", "mlp.down"))}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
def test_what_decays_is_listed_here_and_is_no_code_position_token_or_temperature(name):
    model, expected = LEARNERS[name]
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert decayed == expected
    assert kept == {n for n, p in model.named_parameters() if p.requires_grad} - expected


def test_moments_of_former_groups_find_their_weights_again():
    """Before, every matrix decayed that was no embedding: the oracle is an optimizer with such groups."""
    torch.manual_seed(0)
    model = small_priors.next_scale(depth=1, shared_adaln=True)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learning if p.dim() >= 2 and id(p) not in tables]
    others = [p for p in learning if p.dim() < 2 or id(p) in tables]
    former = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], lr=0.1)
    former.step()
    optimizer = build_optimizer(model, OptimizationConfig())
    assert [len(g["params"]) for g in optimizer.param_groups] != [len(g["params"]) for g in former.param_groups]
    optimizer.load_state_dict(regrouped(former.state_dict(), model, optimizer))
    for p in learning:
        assert torch.equal(optimizer.state[p]["exp_avg"], former.state[p]["exp_avg"])
        assert optimizer.state[p]["step"] == 1


def test_decay_without_gradient_shrinks_kernels_by_lr_times_decay_and_leaves_the_rest():
    net = Net(VectorQuantizer(8, 4))
    optimizer = build_optimizer(net, OptimizationConfig(lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "conv.weight" else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_a_moving_average_codebook_is_not_given_to_the_optimizer():
    net = Net(EMAVectorQuantizer(8, 4))
    held = {id(p) for group in parameter_groups(net, 0.1) for p in group["params"]}
    assert id(net.quantizer.embedding.weight) not in held
    assert len(held) == 4


def test_adamw_takes_the_steps_of_its_paper():
    torch.manual_seed(0)
    config = OptimizationConfig(lr=0.01, weight_decay=0.3, betas=(0.8, 0.9))
    layer = nn.Linear(3, 2, bias=False)
    expected = layer.weight.detach().double().clone()
    optimizer = build_optimizer(layer, config)
    m = v = torch.zeros_like(expected)
    for t in range(1, 5):
        gradient = torch.randn(2, 3)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.9**t)
        expected = expected - 0.01 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.3 * expected)
        torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", math.inf),
        ("lr", math.nan),
        ("warmup_steps", -1),
        ("min_lr_ratio", 1.5),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("betas", (0.9, 1.0)),
        ("grad_clip", 0.0),
        ("grad_clip", math.nan),
        ("ema_decay", 1.0),
    ],
)
def test_impossible_settings_are_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        OptimizationConfig(**{field: value})
    assert str(value) in str(caught.value)
    assert "\n" not in str(caught.value)
