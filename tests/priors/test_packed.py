"""Sampling on packed weights draws what plain weights draw, and leaves the prior as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_priors import GREEDY, awake, logits, next_token, sequences
from torch import Tensor

from smalti.ops.linear import packed_linear
from smalti.priors import NextTokenTransformer
from smalti.priors.packed import packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packed_weights_give_the_same_logits_and_leave_the_prior_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    prior = awake(next_token())
    prior.cast(dtype)
    tokens, labels = sequences(prior)
    before = {name: weight.clone() for name, weight in prior.state_dict().items()}
    prior.sample(labels)
    with torch.no_grad():
        a, b = packed(prior, rows=6)(tokens, labels), prior(tokens, labels)
    torch.testing.assert_close(a, b, rtol=0, atol=8 * torch.finfo(dtype).eps * b.abs().max().item())
    after = prior.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    prior.save_pretrained(tmp_path)
    assert torch.equal(NextTokenTransformer.from_pretrained(tmp_path).head.weight, before["head.weight"])


def test_packed_and_plain_weights_draw_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily in fp32, up to the first token of an image whose two best logits are nearly equal."""
    torch.manual_seed(0)
    prior, labels = awake(next_token()), torch.tensor([0, 1, 2, 3])
    drawn = prior.sample(labels, GREEDY)
    monkeypatch.setattr("smalti.priors.packed.packed_linear", lambda *_: None)
    best = logits(prior, drawn, labels).topk(2, dim=-1).values
    sure = (best[..., 0] - best[..., 1] > 1e-3).cummin(dim=1).values
    assert sure.float().mean() > 0.9
    assert torch.equal(prior.sample(labels, GREEDY)[sure], drawn[sure])


def test_sampling_packs_each_layer_once_and_sees_changed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also weights changed behind autograd's back, through `.data`."""
    packings: list[tuple[int, ...]] = []

    def watched(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor] | None:
        packings.append((*weight.shape, rows))
        return packed_linear(weight, bias, rows)

    monkeypatch.setattr("smalti.priors.packed.packed_linear", watched)
    torch.manual_seed(0)
    prior, labels = awake(next_token()), torch.tensor([0, 1, 2])
    first = prior.sample(labels, GREEDY)
    assert len(packings) == sum(isinstance(module, torch.nn.Linear) for module in prior.modules()) == 11
    assert all(rows == 3 for *_, rows in packings)
    prior.head.weight.data.neg_()
    assert not torch.equal(prior.sample(labels, GREEDY), first)


def test_layers_of_another_kind_are_not_packed() -> None:
    """Their weights may be anything: a parametrized one is computed anew in every call."""
    prior = awake(next_token())
    prior.blocks[0].mlp.up = prior.blocks[0].mlp.gate  # type: ignore[union-attr]
    torch.nn.utils.parametrizations.weight_norm(prior.head)
    calls: list[int] = []
    prior.blocks[0].register_forward_hook(lambda *_: calls.append(1))  # hooks stay too
    with torch.no_grad():
        twin = packed(prior, rows=8)
        assert type(twin.head) is type(prior.head)
        assert "forward" not in vars(twin.head)
        tokens, labels = sequences(prior)
        torch.testing.assert_close(twin(tokens, labels), prior(tokens, labels))
    assert calls == [1, 1]
