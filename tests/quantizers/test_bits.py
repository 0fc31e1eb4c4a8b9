"""Bits as tokens: codes and losses as with one index per vector; any number of bits; files, token sets, Infinity."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_box import some_photos
from torch import Tensor

import smalti
from smalti.cli import main
from smalti.data import TokenDataset
from smalti.quantizers import (
    BinarySphericalQuantizer,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    quantizer_from_config,
)
from smalti.tokenizers import SimpleVQVAE, Tokens

BOTH = pytest.mark.parametrize("kind", [LookupFreeQuantizer, BinarySphericalQuantizer])


@BOTH
def test_bits_are_those_of_the_index(kind: type) -> None:
    """Codes, loss terms and gradients are equal; the index is made of the bits."""
    z = torch.randn(2, 10, 3, 5)
    results = []
    for bitwise in (False, True):
        quantizer, latent = kind(10, bitwise=bitwise), z.clone().requires_grad_()
        output = quantizer(latent)
        output.loss.backward()
        results.append((output.quantized, output.terms, latent.grad, quantizer.encode(z)))
    (quantized, terms, gradient, indices), (quantized_bits, terms_bits, gradient_bits, bits) = results
    assert torch.equal(quantized, quantized_bits)
    assert terms == terms_bits
    assert torch.equal(gradient, gradient_bits)
    assert torch.equal((bits * 2 ** torch.arange(10)).sum(dim=-1), indices)
    assert torch.equal(bits.movedim(-1, 1) == 1, z > 0)


@BOTH
def test_there_may_be_more_bits_than_an_index_holds(kind: type) -> None:
    quantizer = kind(70, bitwise=True)
    z = torch.randn(2, 70, 4, 4)
    bits = quantizer.encode(z)
    assert bits.shape == (2, 4, 4, 70)
    expected = torch.where(z > 0, 1.0, -1.0) * quantizer.amplitude
    torch.testing.assert_close(quantizer.decode(bits), expected)
    assert quantizer_from_config(quantizer.config()).bitwise
    with pytest.raises(ValueError, match="embedding_dim: got 70, expected 1 to 62"):
        kind(70)
    with pytest.raises(ValueError, match="highest_first: got True"):
        kind(8, highest_first=True, bitwise=True)
    with pytest.raises(ValueError, match="get_codebook: got a bitwise"):
        quantizer.get_codebook()
    assert "bitwise" not in kind(8).config()


def one_scale() -> Quantizer:
    return BinarySphericalQuantizer(64, bitwise=True)


def pyramid() -> Quantizer:
    return MultiScaleQuantizer(2, 64, (1, 2, 4), quantizer=BinarySphericalQuantizer(64, bitwise=True))


@pytest.fixture(scope="module", params=[one_scale, pyramid])
def tokenizer(request: pytest.FixtureRequest) -> SimpleVQVAE:
    torch.manual_seed(0)
    return SimpleVQVAE(2, 64, 8, num_stages=2, num_res_blocks=0, quantizer=request.param()).eval()


def test_tokens_of_a_tokenizer_are_bits(tokenizer: SimpleVQVAE) -> None:
    tokens = tokenizer.encode(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    assert all(scale.dtype == torch.uint8 for scale in tokens.indices)
    positions = sum(height * width for height, width, _ in tokens.grids)
    bits = tokens.bits()
    assert bits.shape == (2, positions, 64)
    assert tokens.flatten().dtype == torch.int64
    assert torch.equal(bits.flatten(1).long(), tokens.flatten())
    again = Tokens.unflatten(tokens.flatten(), tokens.grids, (16, 16), 2, torch.uint8)
    assert torch.equal(again.bits(), bits)
    assert torch.equal(tokenizer.decode(again), tokenizer.decode(tokens))
    broken = Tokens(tuple(scale + 1 for scale in tokens.indices), (16, 16), 2, torch.uint8)
    with pytest.raises(ValueError, match=r"indices.*: got the value 2"):
        tokenizer.decode(broken)
    with pytest.raises(ValueError, match="bits: got tokens of 5 codes"):
        Tokens((torch.zeros(1, 2, 2, dtype=torch.int64),), (8, 8), 5).bits()
    with pytest.raises(ValueError, match=r"indices: got .*uint8"):
        Tokens((torch.zeros(1, 2, 2, dtype=torch.uint8),), (8, 8), 5)


def test_files_and_token_sets_hold_them(
    tokenizer: SimpleVQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bit costs a bit in a token file; what is written decodes to the image of the tokenizer."""
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("run")
    some_photos(tmp_path / "photos")
    assert main(["reconstruct", "run", "photos/0.png", "expected.png"]) == 0
    for coding in ("packed", "adaptive"):
        assert main(f"encode run photos/0.png -o {coding}.tokens --coding {coding}".split()) == 0
        assert main(f"decode run {coding}.tokens {coding}.png".split()) == 0
        assert Path(f"{coding}.png").read_bytes() == Path("expected.png").read_bytes()
    tokens = tokenizer.encode(torch.zeros(1, 3, 24, 20))
    assert Path("packed.tokens").stat().st_size < tokens.num_tokens / 8 + 150
    assert main(["tokenize", "run", "photos", "--out", "set", "--size", "16"]) == 0
    assert main(["tokens", "verify", "set"]) == 0
    assert main(["tokens", "show", "set", "0.png", "shown.png"]) == 0
    dataset = TokenDataset("set")
    assert set(dataset[0][0].tolist()) == {0, 1}
    capsys.readouterr()
    assert main(["eval", "run", "photos", "--size", "16", "--judges=[]", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["bits_per_pixel"] == pytest.approx(dataset[0][0].numel() / 256)
    assert smalti.load("run").encode(torch.zeros(1, 3, 24, 20)).fingerprint == tokens.fingerprint


def test_the_bits_are_those_of_infinity(golden: Path) -> None:
    """Infinity's quantizer, written out around ours: every scale has its own projection; upsampling is bilinear."""
    expected = load_file(golden / "infinity_bsq" / "expected.safetensors")
    latent = expected["latent"]
    quantizer = BinarySphericalQuantizer(latent.shape[1], bitwise=True)
    total: Tensor = torch.zeros_like(latent)
    for k in range(7):
        bits, margin = expected[f"bits.{k:02}"], expected[f"margin.{k:02}"]
        residual = F.interpolate(latent - total, size=bits.shape[1:3], mode="area")
        found = quantizer.encode(residual)
        clear = margin.reshape(bits.shape[:3]) > 1e-4
        assert torch.equal(found[clear], bits[clear].long())
        codes = F.interpolate(quantizer.decode(bits.long()), size=latent.shape[2:], mode="bilinear")
        total = total + codes
    torch.testing.assert_close(total, expected["quantized"], atol=1e-4, rtol=0)
