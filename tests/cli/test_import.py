"""`smalti import`: every golden from the command line, and every refusal in one line."""

import json
import os

import pytest
import torch
from published import FAMILY, OPTIONS, checkpoint, expected

from smalti.cli import main
from smalti.zoo import load


@pytest.mark.parametrize("name", FAMILY)
@torch.no_grad()
def test_every_golden(name, golden, tmp_path, capsys):
    options = [f"--{key}={value}" for key, value in OPTIONS.get(name, {}).items()]
    assert main(["import", str(checkpoint(golden, name)), str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().out
    assert f"({FAMILY[name]})" in said
    assert "licence: " in said
    lightning = ("taming_vqgan_f16", "ibq_16384", "open_magvit2", "simvq", "rqvae", "wetok")
    assert ("ignored: epoch" in said) == (name in lightning)
    assert "assumed: " in said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["source"]["url"].startswith("https://")
    values = expected(golden, name)
    tokens = load(tmp_path / "out").encode(values["image"])
    if "indices" in values:
        sure = values["margin"] > 1e-4
        assert torch.equal(tokens.indices[0][sure], values["indices"][sure])
    else:
        *_, last = sorted(name for name in values if name.startswith("indices."))
        assert torch.equal(tokens.indices[-1].flatten(1), values[last])


def test_options_reach_the_family(golden, tmp_path, capsys):
    source = str(checkpoint(golden, "var_vqvae"))
    scales = "[1,2,4,8]"
    assert main(["import", source, str(tmp_path / "out"), "--patch_nums", scales, "--metric", "cosine"]) == 0
    quantizer = json.loads((tmp_path / "out" / "config.json").read_text())["quantizer"]
    assert quantizer["patch_nums"] == [1, 2, 4, 8]
    assert quantizer["quantizer"]["type"] == "ZNormVectorQuantizer"
    assert capsys.readouterr().err == ""


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_a_crafted_pickle_is_refused_with_the_safe_way(tmp_path, capsys):
    torch.save({"state_dict": {}, "hook": Payload(tmp_path / "trap")}, tmp_path / "model.ckpt")
    assert main(["import", str(tmp_path / "model.ckpt"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "refused" in said
    assert "save_file" in said
    assert not (tmp_path / "trap").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.pt", "out"], "does not exist"),
        (["model.pt", "out", "--family", "vqgan"], "family"),
        (["model.pt", "out", "--num_heads", "2"], "num_heads: not an option of taming"),
        (["model.pt", "out", "--family", "taming"], "missing"),
        (["model.pt", "taken"], "already exists"),
        (["model.pt"], "missing OUT"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    torch.save({"encoder.mid.block_1.conv1.bias": torch.zeros(32), "decoder.conv_in.bias": torch.zeros(32)}, "model.pt")
    assert main(["import", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
