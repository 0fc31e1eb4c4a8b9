"""What all priors have in common, and what makes each one what it is.

The oracle of sampling is the training pass: read with all tokens at once, a sequence must get the logits that it was
drawn from token by token or scale by scale.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_priors import (
    DEEP,
    DEEP_PYRAMID,
    FLAT,
    GREEDY,
    PYRAMID,
    V,
    awake,
    logits,
    masked,
    next_scale,
    next_scale_deep,
    next_token,
    sequences,
)
from torch import Tensor

from smalti.priors import (
    MaskedTransformer,
    NextScaleConfig,
    NextScaleTransformer,
    Prior,
    SamplingConfig,
    TokenLayout,
)
from smalti.priors.adaptive_block import AdaptiveBlock
from smalti.priors.cache import KeyValueCache
from smalti.quantizers import MultiScaleQuantizer

MAKERS: dict[str, Callable[[], Prior]] = {
    "next-scale": next_scale,
    "next-scale, shared": lambda: next_scale(shared_adaln=True, l2_attention=False),
    "next-scale, two codes": next_scale_deep,
    "next-token": next_token,
    "next-token, few keys": lambda: next_token(num_kv_heads=1),
    "next-token, two codes": lambda: next_token(DEEP),
    "masked": masked,
}


@pytest.fixture(params=MAKERS)
def prior(request: pytest.FixtureRequest) -> Prior:
    torch.manual_seed(0)
    return awake(MAKERS[request.param]())


# ---- all of them --------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_negative_log_likelihood(prior: Prior) -> None:
    tokens, labels = sequences(prior)
    if isinstance(prior, MaskedTransformer):
        hidden = prior._hide(tokens)
        assert (hidden.sum(dim=1) == math.ceil(prior.layout.num_tokens / 2)).all()
        log_p = logits(prior, tokens.masked_fill(hidden, V), labels).log_softmax(-1)
        expected = -log_p.gather(2, tokens.unsqueeze(2)).squeeze(2)[hidden].mean()
    else:
        log_p = logits(prior, tokens, labels).log_softmax(-1)
        expected = -log_p.gather(2, tokens.unsqueeze(2)).mean()
    torch.testing.assert_close(prior.loss(tokens, labels), expected)


def test_surprisal_is_the_loss_token_by_token_in_bits(prior: Prior) -> None:
    tokens, labels = sequences(prior)
    bits = prior.surprisal(tokens, labels)
    if isinstance(prior, MaskedTransformer):  # the loss is that of the first half
        half = prior._hide(tokens)
        torch.testing.assert_close(bits[half].mean() * math.log(2), prior.loss(tokens, labels))
        p = logits(prior, tokens.masked_fill(~half, V), labels).softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
        torch.testing.assert_close(2.0 ** -bits[~half], p[~half])
    else:
        torch.testing.assert_close(bits.mean() * math.log(2), prior.loss(tokens, labels))


@pytest.mark.parametrize("make", [next_scale, next_scale_deep, next_token, lambda: next_token(DEEP)])
def test_surprisal_of_causal_priors_does_not_depend_on_what_follows(make: Callable[[], Prior]) -> None:
    prior = awake(make())
    tokens, labels = sequences(prior)
    start = prior.layout.spans[-1][0] if isinstance(prior, NextScaleTransformer) else prior.layout.num_tokens - 1
    other = tokens.clone()
    other[:, start:] = (tokens[:, start:] + 1) % V
    bits, after = prior.surprisal(tokens, labels), prior.surprisal(other, labels)
    torch.testing.assert_close(after[:, :start], bits[:, :start])
    assert not torch.allclose(after[:, start:], bits[:, start:])


def test_every_weight_gets_a_gradient_and_the_quantizer_none(prior: Prior) -> None:
    tokens, labels = sequences(prior)
    prior.train().loss(tokens, labels).backward()
    for name, parameter in prior.named_parameters():
        if name.startswith("quantizer."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_recomputing_blocks_changes_no_gradient(prior: Prior) -> None:
    tokens, labels = sequences(prior)
    twin = copy.deepcopy(prior)
    twin.gradient_checkpointing = True
    for model in (prior, twin):
        torch.manual_seed(2)
        model.train().loss(tokens, labels).backward()
    for (name, a), b in zip(prior.named_parameters(), twin.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_one_seed_one_sample_and_guidance_changes_it(prior: Prior) -> None:
    labels = torch.tensor([0, 1, 2, 3])

    def sample(seed: int, **config: float) -> Tensor:
        return prior.sample(labels, SamplingConfig(**config), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]

    first = sample(5)
    assert first.shape == (4, prior.layout.num_tokens)
    assert 0 <= first.min() <= first.max() < V
    assert torch.equal(first, sample(5))
    assert not torch.equal(first, sample(6))
    assert not torch.equal(first, sample(5, guidance=20.0))


def test_kept_tokens_stay_and_the_rest_is_drawn_for_them(prior: Prior) -> None:
    tokens, labels = sequences(prior)
    keep = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.5

    def sample(**changes: Tensor) -> Tensor:
        return prior.sample(labels, GREEDY, generator=torch.Generator().manual_seed(0), **changes)

    assert torch.equal(sample(given_BL=tokens, keep_BL=keep)[keep], tokens[keep])
    assert torch.equal(sample(given_BL=tokens, keep_BL=torch.ones_like(keep)), tokens)
    assert torch.equal(sample(given_BL=tokens, keep_BL=torch.zeros_like(keep)), sample())
    for alone in ({"given_BL": tokens}, {"keep_BL": keep}):
        with pytest.raises(ValueError, match="got None, expected it together with"):
            sample(**alone)


def test_built_on_the_meta_device_and_loaded_it_is_the_same(prior: Prior) -> None:
    """What is not saved follows from the settings, whatever the memory held."""
    tokens, labels = sequences(prior)
    other = copy.deepcopy(prior).to("meta").to_empty(device="cpu")
    assert other.load_state_dict(prior.state_dict()) == ([], [])
    other.eval(), prior.eval()
    assert torch.equal(other.loss(tokens, labels), prior.loss(tokens, labels))
    draws = [each.sample(labels, GREEDY, generator=torch.Generator().manual_seed(0)) for each in (other, prior)]
    assert torch.equal(*draws)


def test_saved_and_loaded_it_is_the_same(prior: Prior, tmp_path: Path) -> None:
    prior.save_pretrained(tmp_path)
    loaded = type(prior).from_pretrained(tmp_path)
    tokens, labels = sequences(prior)
    assert loaded.fingerprint == prior.fingerprint
    assert loaded.layout == prior.layout
    assert torch.equal(logits(loaded, tokens, labels), logits(prior, tokens, labels))


@pytest.mark.parametrize(
    ("tokens", "labels", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]), "tokens: got shape"),
        (None, torch.tensor([4]), "labels: got 4, expected 0 to 3"),
        (None, torch.tensor([-1]), "labels: got -1"),
    ],
)
def test_other_sequences_and_labels_are_refused(
    prior: Prior, tokens: Tensor | None, labels: Tensor, message: str
) -> None:
    own, _ = sequences(prior, batch=1)
    with pytest.raises(ValueError, match=message):
        prior.loss(own if tokens is None else tokens, labels)
    with pytest.raises(ValueError, match=f"the value {V}, expected 0 to {V - 1}"):
        prior.loss(torch.full_like(own, V), torch.tensor([0]))


def test_training_hides_the_class_now_and_then(prior: Prior) -> None:
    prior.class_dropout = 0.25
    labels = torch.zeros(4000, dtype=torch.int64)
    assert torch.equal(prior._dropped(labels), labels)  # not in eval mode
    share = (prior.train()._dropped(labels) == prior.num_classes).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_is_close_to_fp32(prior: Prior, dtype: torch.dtype) -> None:
    tokens, labels = sequences(prior)
    expected = prior.loss(tokens, labels)
    with torch.autocast("cpu", dtype=dtype):
        loss = prior.loss(tokens, labels)
        sampled = prior.sample(labels, SamplingConfig(), generator=torch.Generator().manual_seed(0))
    assert sampled.shape == tokens.shape
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)


def test_cast_to_bf16_it_is_close_to_fp32_and_draws_the_same_again(prior: Prior) -> None:
    """The quantizer and tables keep their format; what is drawn greedily is nearly the best by the fp32 logits."""
    tokens, labels = sequences(prior)
    expected, kept = logits(prior, tokens, labels).detach(), dict(prior.named_buffers())
    low = copy.deepcopy(prior)
    low.cast(torch.bfloat16)
    assert {p.dtype for n, p in low.named_parameters() if not n.startswith("quantizer.")} == {torch.bfloat16}
    assert all(torch.equal(buffer, kept[name]) for name, buffer in low.named_buffers())
    twice = [low.sample(labels, SamplingConfig(), generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*twice)
    if isinstance(prior, MaskedTransformer):
        assert (low(tokens, labels) - expected).abs().max() < 0.05 * expected.std() * 4
        return
    drawn = low.sample(labels, GREEDY)
    of_drawn = logits(prior, drawn, labels)
    lost = of_drawn.amax(dim=-1) - of_drawn.gather(2, drawn.unsqueeze(2)).squeeze(2)
    assert lost.max() < 0.1 * of_drawn.std()


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [next_scale, next_token, lambda: next_token(DEEP)])
def test_sampling_allocates_one_cache_of_the_size_of_its_formula(
    make: Callable[[], Prior], dtype: torch.dtype, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, made = make().eval(), []
    prior.cast(dtype)
    allocate = KeyValueCache.__init__

    def watched(cache: KeyValueCache, *args: object, **options: object) -> None:
        allocate(cache, *args, **options)  # type: ignore[arg-type]
        made.append(cache)

    monkeypatch.setattr(KeyValueCache, "__init__", watched)
    prior.sample(torch.tensor([0, 1, 2]), SamplingConfig(guidance=guidance))
    (cache,) = made
    batch, tokens, layers, width = 3 * (2 if guidance else 1), prior.layout.num_tokens, 2, 16
    assert cache.nbytes == 2 * layers * batch * tokens * width * dtype.itemsize
    assert cache.nbytes == KeyValueCache.bytes(layers, batch, tokens, width, dtype)
    assert all(layer.length == tokens for layer in cache.layers)  # filled to the last place, none too many


@pytest.mark.parametrize("make", [next_scale, next_token, lambda: masked(DEEP)])
def test_learns_the_tokens_of_each_class(make: Callable[[], Prior]) -> None:
    """Two classes, one sequence each: after a few steps sampling gives back the sequence of the class."""
    torch.manual_seed(0)
    prior = make()
    tokens = torch.randint(V, (2, prior.layout.num_tokens))
    labels = torch.tensor([0, 2])
    optimizer = torch.optim.Adam([p for p in prior.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        prior.train().loss(tokens.repeat(4, 1), labels.repeat(4)).backward()
        optimizer.step()
    drawn = prior.eval().sample(labels, SamplingConfig(guidance=1.0, top_k=1))
    assert (drawn == tokens).float().mean() > 0.9


# ---- next scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [next_scale, lambda: next_scale(shared_adaln=True), next_scale_deep])
def test_a_scale_depends_on_coarser_ones_alone(make: Callable[[], Prior]) -> None:
    prior = awake(make())
    tokens, labels = sequences(prior, batch=1)
    expected = logits(prior, tokens, labels)
    for k, (start, end) in enumerate(prior.layout.spans):
        changed = tokens.clone()
        changed[:, start:end] = (changed[:, start:end] + 1) % V
        difference = (logits(prior, changed, labels) - expected).abs().amax(dim=(0, 2))
        assert (difference[:end] == 0).all(), k
        assert (difference[end:] > 0).all(), k


@pytest.mark.parametrize("make", [next_scale, next_token, masked])
@pytest.mark.parametrize("top_k", [0, 1])
def test_a_prior_with_a_damaged_weight_says_so(make: Callable[[], Prior], top_k: int) -> None:
    prior = awake(make())
    with torch.no_grad():
        prior.class_embedding.weight[1, 3] = math.nan
    prior.sample(torch.tensor([0]), SamplingConfig(guidance=0.0, top_k=top_k))
    with pytest.raises(ValueError, match="logits: got NaN or infinity"):
        prior.sample(torch.tensor([0, 1]), SamplingConfig(guidance=1.0, top_k=top_k))


@pytest.mark.parametrize("make", [next_scale, next_scale_deep])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_sampling_by_scale_reads_what_training_reads(guidance: float, make: Callable[[], Prior]) -> None:
    """Drawn greedily, each scale is the arg-max of the teacher-forced, guided logits of the whole sequence."""
    prior = awake(make())
    labels = torch.tensor([0, 1, 2])
    drawn = prior.sample(labels, SamplingConfig(guidance=guidance, top_k=1))
    conditional, free = logits(prior, drawn, labels), logits(prior, drawn, torch.full_like(labels, 3))
    for k, (start, end) in enumerate(prior.layout.spans):
        t = guidance * k / 2
        expected = (1 + t) * conditional[:, start:end] - t * free[:, start:end]
        best = expected.topk(2, dim=-1)
        sure = best.values[..., 0] - best.values[..., 1] > 1e-4
        assert torch.equal(drawn[:, start:end][sure], best.indices[..., 0][sure])


def test_next_scale_refuses_what_it_cannot_model() -> None:
    quantizer = MultiScaleQuantizer(V, 4, (1, 2, 3))
    with pytest.raises(ValueError, match="3 scales"):
        NextScaleTransformer(FLAT, 3, quantizer)
    with pytest.raises(ValueError, match="11 codes"):
        NextScaleTransformer(TokenLayout.of(12, PYRAMID.grids, (24, 16)), 3, quantizer)
    with pytest.raises(ValueError, match=r"codes of shape \(\) per position, expected \(2,\)"):
        NextScaleTransformer(DEEP_PYRAMID, 3, quantizer)
    with pytest.raises(ValueError, match="expected a divisor"):
        NextScaleConfig(width=10, num_heads=4)


# ---- next token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [FLAT, DEEP])
def test_a_token_depends_on_earlier_ones_alone(layout: TokenLayout) -> None:
    prior = awake(next_token(layout))
    tokens, labels = sequences(prior, batch=1)
    expected = logits(prior, tokens, labels)
    for i in range(layout.num_tokens):
        changed = tokens.clone()
        changed[:, i] = (changed[:, i] + 1) % V
        difference = (logits(prior, changed, labels) - expected).abs().amax(dim=(0, 2))
        assert (difference[: i + 1] == 0).all()
        assert (difference[i + 1 :] > 0).all()


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("kv_heads", [0, 1])
def test_sampling_by_token_reads_what_training_reads(guidance: float, kv_heads: int) -> None:
    prior = awake(next_token(num_kv_heads=kv_heads))
    labels = torch.tensor([0, 1, 2])
    drawn = prior.sample(labels, SamplingConfig(guidance=guidance, top_k=1))
    conditional, free = logits(prior, drawn, labels), logits(prior, drawn, torch.full_like(labels, 3))
    best = ((1 + guidance) * conditional - guidance * free).topk(2, dim=-1)
    sure = best.values[..., 0] - best.values[..., 1] > 1e-4
    assert torch.equal(drawn[sure], best.indices[..., 0][sure])


def test_next_token_refuses_many_scales() -> None:
    for make in (next_token, masked):
        with pytest.raises(ValueError, match="got 3 scales, expected a single one"):
            make(PYRAMID)


# ---- masked -------------------------------------------------------------------------------------------------------


def test_masking_follows_the_cosine_schedule() -> None:
    """Training hides cos(π/2 u) of an image, u uniform: on average 2/π, at least one token, never a fixed place."""
    prior = masked().train()
    hidden = prior._hide(torch.zeros(4000, 12, dtype=torch.int64))
    assert hidden.sum(dim=1).min() >= 1
    expected = sum(math.ceil(12 * math.cos(math.pi / 2 * (i + 0.5) / 1000)) for i in range(1000)) / 1000 / 12
    assert hidden.float().mean().item() == pytest.approx(expected, abs=0.01)
    assert hidden.float().mean(dim=0) == pytest.approx(torch.full((12,), expected), abs=0.04)


def test_masked_sampling_uncovers_along_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of hidden tokens that each pass reads is floor(L cos(π/2 t/T)), and none is left at the end."""
    prior = awake(masked())
    assert isinstance(prior, MaskedTransformer)
    seen: list[int] = []
    forward = MaskedTransformer.forward

    def watched(self: MaskedTransformer, tokens_BL: Tensor, labels_B: Tensor) -> Tensor:
        seen.append(int((tokens_BL == self.hidden).sum(dim=1).unique().item()))
        return forward(self, tokens_BL, labels_B)

    monkeypatch.setattr(MaskedTransformer, "forward", watched)
    drawn = prior.sample(torch.tensor([0, 1]), SamplingConfig(guidance=1.0))
    assert seen == [12, *(math.floor(12 * math.cos(math.pi / 2 * t / 5)) for t in range(1, 5))]
    assert drawn.max() < V


def test_masked_prediction_sees_all_visible_tokens() -> None:
    prior = awake(masked())
    tokens, labels = sequences(prior, batch=1)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % V
    difference = (logits(prior, changed, labels) - logits(prior, tokens, labels)).abs().amax(dim=(0, 2))
    assert (difference > 0).all()


def test_label_smoothing_is_for_training_alone() -> None:
    torch.manual_seed(0)
    prior = awake(masked())
    assert isinstance(prior, MaskedTransformer)
    prior.class_dropout = 0.0
    tokens, labels = sequences(prior)
    torch.manual_seed(4)
    loss = prior.train().loss(tokens, labels)
    torch.manual_seed(4)
    hidden = prior._hide(tokens)
    found = logits(prior, tokens.masked_fill(hidden, V), labels)[hidden]
    torch.testing.assert_close(loss, F.cross_entropy(found, tokens[hidden], label_smoothing=0.1))


# ---- what training leaves out ---------------------------------------------------------------------------------------

DROPPING = {
    "next-scale": (next_scale, {"drop_path": 0.5}),
    "next-token": (next_token, {"dropout": 0.5}),
    "masked": (masked, {"dropout": 0.5}),
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropping_is_for_training_alone(name: str) -> None:
    make, settings = DROPPING[name]
    torch.manual_seed(0)
    plain = awake(make())
    dropping = awake(make(**settings))
    dropping.load_state_dict(plain.state_dict())
    tokens, labels = sequences(plain)
    assert torch.equal(logits(dropping, tokens, labels), logits(plain, tokens, labels))
    dropping.train()
    assert not torch.equal(logits(dropping, tokens, labels), logits(dropping, tokens, labels))
    assert set(settings) == set(dropping.config()["config"]) - set(plain.config()["config"])  # older fingerprints stay
    with pytest.raises(ValueError, match=r"got 1\.0, expected at least 0 and below 1"):
        make(**dict.fromkeys(settings, 1.0))


def test_what_a_dropped_path_adds_is_the_same_on_average() -> None:
    torch.manual_seed(0)
    block = AdaptiveBlock(8, 2, mlp_ratio=1.0, l2_norm=True, shared=False, drop_path=0.25).train()
    gains = block._some(torch.ones(40_000, 1, 8))
    assert set(gains.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (gains == gains[..., :1]).all()  # an image keeps all of a branch or nothing
    assert gains.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("make", [next_scale, next_token, masked])
def test_without_classes_guidance_costs_and_changes_nothing(
    make: Callable[..., Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    prior = awake(make(num_classes=0))
    labels, batches = torch.zeros(3, dtype=torch.int64), set()
    for block in prior.blocks.children():
        block.register_forward_pre_hook(lambda _, inputs: batches.add(len(inputs[0])))
    draws = [
        prior.sample(labels, SamplingConfig(guidance=guidance), generator=torch.Generator().manual_seed(0))
        for guidance in (0.0, 3.0)
    ]
    assert torch.equal(*draws)
    assert batches == {3}
