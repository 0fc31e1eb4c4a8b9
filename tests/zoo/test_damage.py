"""Checkpoints that do not fit, are damaged, or would run code: every one is refused with what is wrong."""

import os
import pickle
import zipfile

import pytest
import torch
from published import checkpoint

from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import VQGAN
from smalti.zoo import load_published
from smalti.zoo.published.fitting import Disagreement


def tiny_taming() -> dict[str, torch.Tensor]:
    """A small VQGAN of ours under taming's names, with a tensor of the loss, by which it is told from Emu3.5."""
    model = VQGAN({"widths": [32, 64], "num_res_blocks": 1, "latent_channels": 8}, VectorQuantizer(16, 4))
    theirs = {"loss.discriminator.main.0.bias": torch.zeros(1)}
    for name, tensor in model.state_dict().items():
        if name.startswith("quantizer.") and "embedding" not in name:
            continue
        tensor = tensor.contiguous()
        if ".qkv." in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                theirs[taming_name(name.replace(".qkv.", f".{part}."))] = third.contiguous()
        else:
            theirs[taming_name(name)] = tensor
    return theirs


def taming_name(name: str) -> str:
    for ours, their in (
        ("decoder.levels.0.", "decoder.up.1."),
        ("decoder.levels.1.", "decoder.up.0."),
        ("encoder.levels.", "encoder.down."),
        ("encoder.projection", "quant_conv"),
        ("decoder.projection", "post_quant_conv"),
        ("quantizer.", "quantize."),
        ("mid.0", "mid.block_1"),
        ("mid.1", "mid.attn_1"),
        ("mid.2", "mid.block_2"),
        ("stem", "conv_in"),
        (".blocks.", ".block."),
        (".attentions.", ".attn."),
        ("shortcut", "nin_shortcut"),
        (".out.", ".proj_out."),
        ("encoder.down.0.resample", "encoder.down.0.downsample"),
        ("up.1.resample", "up.1.upsample"),
    ):
        name = name.replace(ours, their)
    return name


def refusal(tensors, tmp_path, **options) -> str:
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="checkpoint") as caught:
        load_published(tmp_path / "model.ckpt", **options)
    return str(caught.value)


def test_the_undamaged_one_loads(tmp_path):
    tensors = tiny_taming()
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    tokenizer = load_published(tmp_path / "model.ckpt")
    assert torch.equal(tokenizer.state_dict()["decoder.conv_out.weight"], tensors["decoder.conv_out.weight"])
    assert torch.equal(
        tokenizer.state_dict()["encoder.mid.1.qkv.weight"],
        torch.cat([tensors[f"encoder.mid.attn_1.{part}.weight"] for part in "qkv"]),
    )


def test_a_missing_tensor_is_named(tmp_path):
    tensors = tiny_taming()
    for name in list(tensors)[1::7]:
        message = refusal({other: tensor for other, tensor in tensors.items() if other != name}, tmp_path)
        assert f"1 missing: {name}" in message
        assert "surplus" not in message


def test_a_renamed_tensor_is_named_twice(tmp_path):
    tensors = tiny_taming()
    for name in list(tensors)[2::9]:
        renamed = {f"{other}_old" if other == name else other: tensor for other, tensor in tensors.items()}
        message = refusal(renamed, tmp_path)
        assert f"1 missing: {name};" in message
        assert f"1 surplus: {name}_old" in message


def test_a_differently_shaped_tensor_is_named_with_both_shapes(tmp_path):
    tensors = tiny_taming()
    for name, tensor in list(tensors.items())[1::9]:
        if "embedding" in name:
            continue
        wide = torch.zeros(tensor.shape[0] + 32, *tensor.shape[1:])
        message = refusal({**tensors, name: wide}, tmp_path)
        assert f"1 of another shape: {name} is {tuple(wide.shape)}, expected {tuple(tensor.shape)}" in message, message


def test_half_a_checkpoint_shows_ten_names(tmp_path):
    tensors = {name: tensor for name, tensor in tiny_taming().items() if "down.1" not in name or "norm" in name}
    tensors |= {f"encoder.strange.{i}.weight": torch.zeros(1) for i in range(25)}
    message = refusal(tensors, tmp_path, family="taming")
    assert "25 surplus" in message
    assert "and 15 more" in message


def test_nearest_names_come_first():
    difference = Disagreement(missing=("a.b.c", "x.y.bias", "x.y.weight"), surplus=("x.y.weights",), shapes=())
    assert str(difference).startswith("3 missing: x.y.")


def test_unknown_tensors(tmp_path):
    message = refusal({"fc.weight": torch.zeros(2, 2)}, tmp_path)
    assert "fits no family" in message
    assert "fc.weight" in message
    assert "taming" in message


@pytest.mark.parametrize("options", [{"family": "vqgan"}, {"patch_nums": [1, 2]}, {"metric": "manhattan"}])
def test_wrong_arguments(options, tmp_path):
    torch.save(tiny_taming(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=next(iter(options))):
        load_published(tmp_path / "model.pt", **options)


class Payload:
    """Unpickling this makes a folder: what an attacker would put into a checkpoint."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle"])
def test_a_crafted_pickle_runs_no_code(container, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "model.ckpt"
    tree = {"state_dict": tiny_taming(), "callbacks": Payload(trap)}
    if container == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}, "callbacks": Payload(trap)}, protocol=2))
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(ValueError, match=r"refused.*convert it once"):
        load_published(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if container != "bare pickle" else pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap works, so its absence above means something"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02", b"\x00" * 100, b"PK\x03\x04 cut off"])
def test_rubbish(content, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint"):
        load_published(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(share, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(tiny_taming(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="checkpoint"):
        load_published(path)


def test_not_a_dictionary(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds a Tensor"):
        load_published(tmp_path / "model.pt")
    torch.save({"epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no named tensors"):
        load_published(tmp_path / "model.pt")


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_published(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="holds none of"):
        load_published(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.zip", "w"):
        pass
    with pytest.raises(ValueError, match=r"expected one of .*\.pth"):
        load_published(tmp_path / "model.zip")


def test_a_transformer_is_no_tokenizer(golden):
    with pytest.raises(ValueError, match="fits no family"):
        load_published(checkpoint(golden, "llamagen_vq16_gpt"))


@pytest.mark.parametrize("name", ["var_vqvae", "titok_s", "open_magvit2"])
def test_another_family_than_told(name, golden):
    with pytest.raises(ValueError, match=r"as family 'llamagen'.*surplus"):
        load_published(checkpoint(golden, name), "llamagen")
