"""The table of weights: what is computed, with which weight, and what is refused."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from smalti.blocks import EfficientNetLite0
from smalti.formats import WeightsFile
from smalti.losses import (
    NETWORK_LOSSES,
    RECONSTRUCTION_LOSSES,
    LossTable,
    build_network_losses,
    charbonnier,
    check_weights,
    l1,
    l2,
    refuse_training_network,
    table,
)
from smalti.quantizers import QuantizerOutput, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE


@dataclass
class Output:
    """The part of a tokenizer's output that a table reads."""

    reconstruction: Tensor
    quantizer_output: QuantizerOutput


def make_output(terms=None, weights=None):
    torch.manual_seed(0)
    terms = {"codebook": torch.tensor(2.0), "commitment": torch.tensor(3.0)} if terms is None else terms
    weights = {"codebook": 1.0, "commitment": 0.25} if weights is None else weights
    z = torch.zeros(2, 4, 2, 2)
    quantizer_output = QuantizerOutput(z, torch.zeros(2, 2, 2, dtype=torch.int64), terms, weights)
    image = torch.rand(2, 3, 12, 12) * 2 - 1
    return image, Output((image + 0.1 * torch.randn_like(image)).requires_grad_(), quantizer_output)


def test_total_is_the_weighted_sum_and_quantizer_weights_are_defaults():
    image, output = make_output()
    result = LossTable({"l1": 2, "l2": 0.5})(image, output)
    x = output.reconstruction
    assert list(result.terms) == ["l1", "l2", "codebook", "commitment"]
    assert result.weights == {"l1": 2.0, "l2": 0.5, "codebook": 1.0, "commitment": 0.25}
    expected = 2 * l1(x, image) + 0.5 * l2(x, image) + 2.0 + 0.25 * 3.0
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(result.terms["l1"], l1(x, image))
    assert torch.equal(result.terms["commitment"], torch.tensor(3.0))


def test_the_table_overrides_a_quantizers_weight():
    image, output = make_output()
    result = LossTable({"l1": 1.0, "commitment": 0.0})(image, output)
    assert result.weights == {"l1": 1.0, "codebook": 1.0, "commitment": 0.0}
    assert result.terms["commitment"].item() == 3.0  # still there for the log
    assert result.total.item() == pytest.approx(result.terms["l1"].item() + 2.0, rel=1e-6)


def test_a_term_of_weight_zero_cannot_spoil_the_total():
    image, output = make_output(terms={"commitment": torch.tensor(torch.nan)}, weights={"commitment": 1.0})
    assert torch.isfinite(LossTable({"l1": 1.0, "commitment": 0.0})(image, output).total)


def test_losses_of_weight_zero_are_not_computed(monkeypatch):
    def refuse(reconstruction, image):
        raise AssertionError("computed a loss that nobody asked for")

    monkeypatch.setattr(table, "RECONSTRUCTION_LOSSES", {**RECONSTRUCTION_LOSSES, "ms_ssim": refuse, "l2": refuse})
    image, output = make_output()
    result = LossTable({"charbonnier": 1.0, "ms_ssim": 0.0})(image, output)
    assert list(result.terms) == ["charbonnier", "codebook", "commitment"]
    assert torch.equal(result.terms["charbonnier"], charbonnier(output.reconstruction, image))


def test_gradient_is_the_weighted_sum_of_gradients():
    image, output = make_output()
    x = output.reconstruction
    by_l1, by_ms_ssim = (torch.autograd.grad(RECONSTRUCTION_LOSSES[n](x, image), x)[0] for n in ("l1", "ms_ssim"))
    result = LossTable({"l1": 3.0, "ms_ssim": 0.5})(image, output)
    torch.testing.assert_close(torch.autograd.grad(result.total, x)[0], 3 * by_l1 + 0.5 * by_ms_ssim)


@pytest.mark.parametrize("name", ["L1", "LPIPS", "commit"])
def test_unknown_names_are_refused_with_the_allowed_ones(name):
    image, output = make_output()
    with pytest.raises(ValueError, match=f"'{name}'.*ms_ssim, lpips, .*, adversarial, r1, lecam, codebook, commitment"):
        LossTable({"l1": 1.0, name: 1.0})(image, output)


@pytest.mark.parametrize(
    ("name", "weight"),
    [("l1", -1.0), ("l1", float("nan")), ("adversarial", -0.1), ("r1", -1.0), ("commitment", float("inf"))],
)
def test_bad_weights_are_refused(name, weight):
    with pytest.raises(ValueError, match=f"{name}: got {weight}"):
        LossTable({name: weight})


@pytest.mark.parametrize("name", ["r1", "lecam"])
def test_a_discriminators_term_without_a_discriminator_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: .* no weight for adversarial"):
        LossTable({"l1": 1.0, name: 0.5})
    LossTable({"l1": 1.0, name: 0.5, "adversarial": 0.1})


def test_a_term_that_is_added_counts_in_value_and_gradient():
    image, output = make_output()
    result = LossTable({"l1": 1.0, "adversarial": 0.5})(image, output)
    assert "adversarial" not in result.terms
    more = result.plus("adversarial", output.reconstruction.square().mean(), 0.3)
    assert more.total.item() == pytest.approx(sum(more.weights[n] * t.item() for n, t in more.terms.items()), rel=1e-6)
    (before,) = torch.autograd.grad(result.total, output.reconstruction, retain_graph=True)
    (after,) = torch.autograd.grad(more.total, output.reconstruction)
    x = output.reconstruction.detach()
    torch.testing.assert_close(after - before, 0.3 * 2 * x / x.numel())


def test_nothing_to_minimise_is_refused():
    image, output = make_output(terms={}, weights={})
    with pytest.raises(ValueError, match="at least one weight other than 0"):
        LossTable({"l1": 0.0})(image, output)


def test_weights_apply_to_a_real_quantizer_as_its_own_loss_does():
    torch.manual_seed(0)
    quantized = VectorQuantizer(16, 4)(torch.randn(2, 4, 3, 3))
    image, output = make_output()
    output.quantizer_output = quantized
    result = LossTable({"l2": 1.0})(image, output)
    expected = l2(output.reconstruction, image) + quantized.loss
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-6)


# ---- losses that need a network --------------------------------------------------------------------------------------


def test_network_losses_are_built_if_and_only_if_they_are_weighted():
    assert build_network_losses({"l1": 1.0, "lpips": 0.0}) == {}
    built = build_network_losses({"l1": 1.0, "efficientnet_lite0": 0.5})
    assert list(built) == ["efficientnet_lite0"]
    assert built["efficientnet_lite0"].name == "EfficientNet-Lite0 feature distance"
    assert built["efficientnet_lite0"].weights_sha256 == EfficientNetLite0.weights.sha256


def test_the_sum_with_a_networks_term_equals_the_total():
    image, output = make_output()
    weights = {"l1": 1.0, "efficientnet_lite0": 0.5, "ms_ssim": 0.25}
    built = build_network_losses(weights)
    result = LossTable(weights, built)(image, output)
    assert list(result.terms) == ["l1", "ms_ssim", "efficientnet_lite0", "codebook", "commitment"]
    total = sum(result.weights[name] * term.item() for name, term in result.terms.items())
    assert result.total.item() == pytest.approx(total, abs=1e-6)
    assert result.terms["efficientnet_lite0"].item() == built["efficientnet_lite0"](output.reconstruction, image).item()


def test_training_against_a_network_moves_the_model_and_leaves_the_network():
    model = SimpleVQVAE(vocab_size=16, hidden_dim=8, embedding_dim=4)
    weights = {"efficientnet_lite0": 1.0}
    built = build_network_losses(weights)
    before = {name: tensor.clone() for name, tensor in built["efficientnet_lite0"].state_dict().items()}
    names = set(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    losses = LossTable(weights, built)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(image)
        losses(image, output).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.decoder.parameters())
    optimizer.step()
    assert set(model.state_dict()) == names
    for name, tensor in built["efficientnet_lite0"].state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_networks_loss_that_was_not_built_is_refused():
    check_weights({"efficientnet_lite0": 1.0})
    LossTable({"l1": 1.0, "efficientnet_lite0": 0.0})
    with pytest.raises(ValueError, match=r"efficientnet_lite0: got 1\.0.*network_losses"):
        LossTable({"efficientnet_lite0": 1.0})
    with pytest.raises(ValueError, match=r"lpips: got -1\.0"):
        check_weights({"lpips": -1.0})


def test_missing_weights_are_one_line_with_path_and_hash(monkeypatch, tmp_path):
    missing = WeightsFile(names=("missing.pth",), sha256="ab" * 32)
    monkeypatch.setattr(EfficientNetLite0, "weights", missing)
    with pytest.raises(FileNotFoundError, match="ab" * 32) as caught:
        build_network_losses({"efficientnet_lite0": 1.0}, tmp_path)
    assert str(tmp_path / "missing.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_network_of_the_training_loss_is_refused_as_a_judge():
    weights = {"l1": 1.0, "efficientnet_lite0": 0.1, "lpips": 0.0}
    refuse_training_network("HED VGG16", weights)
    refuse_training_network("VGG16", weights)
    with pytest.raises(ValueError, match=r"EfficientNet-Lite0.*loss weight efficientnet_lite0: 0\.1"):
        refuse_training_network("EfficientNet-Lite0", weights)
    with pytest.raises(ValueError, match="VGG16"):
        refuse_training_network("VGG16", {"lpips": 1.0})
    assert {kind.name for _, kind in NETWORK_LOSSES.values()} == {"VGG16", "EfficientNet-Lite0", "HED VGG16"}
