"""The multi-scale quantizer with VAR's weights gives VAR's numbers: see the golden folder's README."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smalti.quantizers import MultiScaleQuantizer


@pytest.fixture(scope="module")
def var(golden: Path) -> tuple[MultiScaleQuantizer, dict[str, torch.Tensor], dict]:
    folder = golden / "var_vqvae"
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}")
    config = json.loads((folder / "config.json").read_text())
    weights = torch.load(next(folder.glob("*.pth")), weights_only=True)
    vq = MultiScaleQuantizer(
        config["vocab_size"],
        config["z_channels"],
        config["patch_nums"],
        config["beta"],
        num_phi=config["share_quant_resi"],
        phi_ratio=config["quant_resi"],
    ).eval()
    with torch.no_grad():
        vq.quantizers[0].embedding.weight.copy_(weights["quantize.embedding.weight"])
        for k, phi in enumerate(vq.phis):
            phi.conv.weight.copy_(weights[f"quantize.quant_resi.qresi_ls.{k}.weight"])
            phi.conv.bias.copy_(weights[f"quantize.quant_resi.qresi_ls.{k}.bias"])
    return vq, load_file(folder / "expected.safetensors"), config


def test_indices_f_hat_and_loss(var: tuple) -> None:
    vq, expected, config = var
    f_hat, loss, indices = vq(expected["latent"])
    assert [tuple(i.shape[1:]) for i in indices] == [tuple(hw) for hw in config["patch_hw"]]
    for k, scale in enumerate(indices):
        assert torch.equal(scale.flatten(1), expected[f"indices.{k:02d}"]), f"scale {k}"
    torch.testing.assert_close(f_hat, expected["f_hat"], atol=2e-4, rtol=0)
    torch.testing.assert_close(loss.reshape(1), expected["vq_loss"], atol=2e-4, rtol=0)


def test_from_the_published_indices_alone(var: tuple) -> None:
    vq, expected, config = var
    indices = tuple(
        expected[f"indices.{k:02d}"].reshape(-1, *hw) for k, hw in enumerate(map(tuple, config["patch_hw"]))
    )
    torch.testing.assert_close(vq.decode(indices), expected["f_hat"], atol=2e-4, rtol=0)
    torch.testing.assert_close(vq.var_input(indices), expected["var_input"], atol=2e-4, rtol=0)


def test_each_image_alone_and_in_train_mode(var: tuple) -> None:
    """The numbers depend neither on the batch nor on the mode (without an optimizer, one pass changes no weight)."""
    vq, expected, _ = var
    for b in range(expected["latent"].shape[0]):
        f_hat, _, indices = vq.train()(expected["latent"][b : b + 1])
        vq.eval()
        torch.testing.assert_close(f_hat[0], expected["f_hat"][b], atol=2e-4, rtol=0)
        for k, scale in enumerate(indices):
            assert torch.equal(scale.flatten(1), expected[f"indices.{k:02d}"][b : b + 1])
