"""Archives with code in them: their tensors are read, their code is not; and models that come as two files."""

import io
import os
import pickle
import zipfile
from shutil import copy

import pytest
import torch
from safetensors.torch import save_file

from smalti.zoo import load_published, read_published
from smalti.zoo.published.torchscript import is_torchscript, read_torchscript


def test_tensors_are_those_of_the_state_dict(golden):
    plain = torch.load(golden / "cosmos_di" / "autoencoder.pt", weights_only=True)
    read = read_torchscript(golden / "cosmos_di" / "autoencoder.jit")
    assert all(torch.equal(read[name], tensor.to(read[name].dtype)) for name, tensor in plain.items())
    assert read["quantizer._levels"].tolist() == [8, 8, 8, 5, 5, 5]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_against_torchs_own_reader(tmp_path):
    """A module of several formats, views that share numbers, and an empty buffer."""
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3).half())
    module.register_buffer("transposed", torch.arange(6).reshape(2, 3).T)
    module.register_buffer("none", torch.empty(0, 4, dtype=torch.bfloat16))
    torch.jit.script(module).save(str(tmp_path / "model.jit"))
    assert is_torchscript(tmp_path / "model.jit")
    read = read_torchscript(tmp_path / "model.jit")
    assert read.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_crafted_archives_are_refused(compression, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.jit", "w", compression) as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"hook": Payload(tmp_path / "trap")}))
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"refused: .*(mkdir|compressed)"):
        load_published(tmp_path / "model.jit")
    assert not (tmp_path / "trap").exists()


def test_damaged_archives_are_refused_in_words(golden, tmp_path):
    whole = (golden / "cosmos_di" / "decoder.jit").read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for change in ({"decoder/data.pkl": members["decoder/data.pkl"][:-200]}, {"decoder/data/0": b"\x00\x00"}):
        with zipfile.ZipFile(tmp_path / "model.jit", "w") as archive:
            for name, content in {**members, **change}.items():
                archive.writestr(name, content)
        with pytest.raises(ValueError, match="checkpoint: "):
            load_published(tmp_path / "model.jit")


@pytest.mark.parametrize("path", ["", "encoder.jit", "decoder.jit"])
def test_two_files_are_one_checkpoint(path, golden, tmp_path):
    for name in ("encoder.jit", "decoder.jit"):
        copy(golden / "cosmos_di" / name, tmp_path)
    whole = load_published(golden / "cosmos_di" / "autoencoder.jit")
    assert load_published(tmp_path / path).fingerprint == whole.fingerprint
    (tmp_path / "encoder.jit").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected encoder\.jit beside it"):
        load_published(tmp_path / "decoder.jit")


def test_cosmos_training_checkpoint(golden, tmp_path):
    """Raw weights that are wrong beside averaged ones that are right, as Tokenize1's model.pt names them."""
    right = torch.load(golden / "cosmos_di" / "autoencoder.pt", weights_only=True)
    tensors = {f"network.{name}": tensor * 0.9 for name, tensor in right.items()}
    tensors |= {f"ema.network-{name.replace('.', '-')}": tensor for name, tensor in right.items()}
    torch.save({"model": tensors, "iteration": 7}, tmp_path / "model.pt")
    published = read_published(tmp_path / "model.pt")
    assert (published.family, published.place) == ("cosmos-di", "model")
    whole = load_published(golden / "cosmos_di" / "autoencoder.jit")
    assert torch.equal(published.model.decoder.stem.weight, whole.decoder.stem.weight)


def test_whole_modules_are_refused_with_the_way_to_convert_them(golden, tmp_path):
    for half in ("encoder", "decoder"):
        copy(golden / "dalle_dvae" / f"{half}.pkl", tmp_path)
    with pytest.raises(ValueError, match=r"dall_e\.encoder\.Encoder.*c\.state_dict\(\).*OUT\.safetensors"):
        load_published(tmp_path)
    for half in ("encoder", "decoder"):
        tensors = torch.load(golden / "dalle_dvae" / f"{half}.pth", weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / f"{half}.safetensors")
    converted = load_published(tmp_path)
    assert converted.fingerprint == load_published(golden / "dalle_dvae" / "encoder.pth").fingerprint
