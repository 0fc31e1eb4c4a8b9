"""The averaged model against the written-out formula, and what must not be averaged."""

import pytest
import small_priors
import torch
from torch import nn

from smalti.quantizers import (
    DeadCodeRevival,
    EMAVectorQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    KMeansInit,
    ResidualQuantizer,
    VectorQuantizer,
)
from smalti.tokenizers import SimpleVQVAE
from smalti.training import AveragedModel


def test_average_is_the_weighted_sum_of_all_former_weights():
    layer = nn.Linear(2, 2)
    averaged = AveragedModel(layer, decay=0.75)
    expected = layer.weight.detach().double().clone()
    for step in range(1, 41):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 2))
        averaged.update(layer, step)
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach().double()
    torch.testing.assert_close(averaged.model.weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_decay_zero_is_the_model_itself():
    layer = nn.Linear(2, 2)
    averaged = AveragedModel(layer, decay=0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    averaged.update(layer, 1)
    assert torch.equal(averaged.model.weight, layer.weight)


@pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])
def test_codebook_and_its_statistics_are_those_of_the_model(kind):
    torch.manual_seed(0)
    quantizer = kind(16, 4, init=KMeansInit(batches=1), revival=DeadCodeRevival(threshold=0.5))
    model = SimpleVQVAE(16, 4, 8, quantizer=quantizer).train()
    averaged = AveragedModel(model, decay=0.99)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(1, 6):
        output = model(torch.rand(4, 3, 16, 16) * 2 - 1)
        (output.reconstruction.square().mean() + output.quantizer_output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update(model, step)
    assert torch.equal(averaged.model.quantizer.get_codebook(), model.quantizer.get_codebook())
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(averaged.model.named_buffers())[name], buffer), name
    kernel = next(model.encoder.parameters())
    assert not torch.equal(next(averaged.model.encoder.parameters()), kernel)


@pytest.mark.parametrize("prior", [small_priors.next_scale(), small_priors.next_token(), small_priors.masked()])
def test_every_weight_of_a_prior_is_averaged_its_words_and_classes_too(prior):
    averaged = AveragedModel(prior, decay=0.9)
    before = {name: p.detach().clone() for name, p in prior.named_parameters()}
    with torch.no_grad():
        for parameter in prior.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    averaged.update(prior, 1000)
    for name, average in averaged.model.named_parameters():
        learns = dict(prior.named_parameters())[name].requires_grad
        assert learns != name.startswith("quantizer.")
        torch.testing.assert_close(average, before[name] + 0.1 * learns, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "quantizer",
    [GumbelQuantizer(8, 4), ResidualQuantizer([VectorQuantizer(8, 4)]), IndexBackpropagationQuantizer(8, 4)],
)
def test_every_codebook_is_copied_in_whatever_it_stands(quantizer):
    averaged = AveragedModel(quantizer, decay=0.9)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(1.0)
    averaged.update(quantizer, 1000)
    for (name, average), parameter in zip(averaged.model.named_parameters(), quantizer.parameters(), strict=True):
        assert torch.equal(average, parameter) == name.endswith("embedding.weight")


def test_the_copy_is_in_eval_mode_without_gradients_and_leaves_the_model_alone():
    model = SimpleVQVAE(16, 4, 8).train()
    averaged = AveragedModel(model, decay=0.9)
    assert not averaged.model.training
    assert model.training
    assert not any(p.requires_grad for p in averaged.model.parameters())
    assert any(p.requires_grad for p in model.parameters())
    before = averaged.model.quantizer.get_codebook().clone()
    averaged.model(torch.zeros(1, 3, 8, 8))
    assert torch.equal(averaged.model.quantizer.get_codebook(), before)


def test_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"ema_decay: got 1\.0"):
        AveragedModel(nn.Linear(1, 1), decay=1.0)
