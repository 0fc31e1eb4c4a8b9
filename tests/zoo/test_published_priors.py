"""Published priors: the goldens, and checkpoints of other sizes written here under the publishers' names."""

import re
from pathlib import Path

import pytest
import torch
from published import checkpoint, expected
from safetensors.torch import load_file
from torch import Tensor

from smalti.priors import (
    NextScaleConfig,
    NextScaleTransformer,
    NextTokenConfig,
    NextTokenTransformer,
    Prior,
    SamplingConfig,
    TokenLayout,
)
from smalti.quantizers import MultiScaleQuantizer, VectorQuantizer, quantizer_from_config
from smalti.tokenizers import SimpleVQVAE, Tokens
from smalti.zoo import load_published, load_published_prior, open_prior
from smalti.zoo.published import llamagen_prior, var_prior

SIDES = (1, 2, 4)

# ---- goldens ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def var(golden: Path) -> tuple[Prior, SimpleVQVAE]:
    tokenizer = load_published(checkpoint(golden, "var_vqvae"))
    return load_published_prior(checkpoint(golden, "var_vqvae_transformer"), tokenizer), tokenizer  # type: ignore[return-value]


def test_var_gives_the_golden_logits(golden: Path, var: tuple[Prior, SimpleVQVAE]) -> None:
    values = load_file(golden / "var_vqvae_transformer" / "expected.safetensors")
    with torch.no_grad():
        logits = var[0](values["var_input"], values["labels"])
    torch.testing.assert_close(logits, values["logits"], rtol=0, atol=1e-3)


def test_var_gives_the_golden_images_of_greedy_sampling(golden: Path, var: tuple[Prior, SimpleVQVAE]) -> None:
    prior, tokenizer = var
    values = load_file(golden / "var_vqvae_transformer" / "expected.safetensors")
    sequence = prior.sample(values["labels"], SamplingConfig(guidance=1.5, top_k=1))
    tokens = Tokens.unflatten(sequence, prior.layout.grids, prior.layout.image_size, tokenizer.vocab_size)
    images = (tokenizer.decode(tokens) + 1) / 2
    torch.testing.assert_close(images, values["greedy_images"], rtol=0, atol=1e-3)


def test_llamagen_gives_the_golden_logits(golden: Path) -> None:
    tokenizer = load_published(checkpoint(golden, "llamagen_vq16"))
    prior = load_published_prior(checkpoint(golden, "llamagen_vq16_gpt"), tokenizer, num_heads=3, grid=(16, 16))
    values = load_file(golden / "llamagen_vq16_gpt" / "expected.safetensors")
    with torch.no_grad():
        logits = prior(values["tokens"], values["labels"])
    torch.testing.assert_close(logits, values["logits"], rtol=0, atol=1e-3)


def test_a_var_prior_refuses_a_tokenizer_of_other_scales(golden: Path) -> None:
    sides = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    tokenizer = load_published(checkpoint(golden, "var_vqvae"), patch_nums=sides)
    with pytest.raises(ValueError, match=re.escape("tokenizer: got scales ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6)")):
        load_published_prior(checkpoint(golden, "var_vqvae_transformer"), tokenizer)
    assert expected(golden, "var_vqvae")


# ---- other sizes --------------------------------------------------------------------------------------------------


def tokenizer(vocab_size: int = 16, *, scales: bool = True) -> SimpleVQVAE:
    quantizer = VectorQuantizer(vocab_size, 4)
    if scales:
        quantizer = MultiScaleQuantizer(vocab_size, 4, SIDES, quantizer=quantizer)  # type: ignore[assignment]
    return SimpleVQVAE(vocab_size, 4, 8, quantizer=quantizer).eval()


def shaken(prior: Prior) -> Prior:
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return prior.eval()


def var_checkpoint(prior: NextScaleTransformer) -> dict[str, Tensor]:
    """Our weights under VAR's names, with the axes and derived tables that its files have."""
    own = {name: value for name, value in prior.state_dict().items() if not name.startswith("quantizer.")}
    theirs = {var_prior.NAMES.original(name, 0): value for name, value in own.items()}
    for name in theirs:
        if name in ("pos_start", "pos_1LC"):
            theirs[name] = theirs[name][None]
        if name.endswith("scale_mul_1H11"):
            theirs[name] = theirs[name][None]
        if name.endswith("ada_gss"):
            theirs[name] = theirs[name][None, None]
    lengths = torch.tensor(prior.layout.scale_lengths)
    theirs["lvl_1L"] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None]
    theirs["attn_bias_for_masking"] = torch.zeros(1, 1, prior.layout.num_tokens, prior.layout.num_tokens)
    for i in range(prior.settings.depth):
        theirs[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(prior.settings.width)
    return theirs


@pytest.mark.parametrize(
    "config",
    [
        NextScaleConfig(depth=1, width=64, num_heads=1, l2_attention=False),
        NextScaleConfig(depth=3, width=24, num_heads=6, mlp_ratio=2.0),
        NextScaleConfig(depth=2, width=32, num_heads=2, shared_adaln=True),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_var_of_other_sizes_is_inferred(config: NextScaleConfig, nested: bool, tmp_path: Path) -> None:
    tok = tokenizer()
    layout = TokenLayout.of(16, [(s, s) for s in SIDES], (16, 16), tok.fingerprint)
    copied = quantizer_from_config(tok.quantizer.config())
    copied.load_state_dict(tok.quantizer.state_dict())
    assert isinstance(copied, MultiScaleQuantizer)
    prior = NextScaleTransformer(layout, 5, copied, config)
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if not name.startswith("quantizer."):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    prior.eval()
    weights = var_checkpoint(prior)
    torch.save({"trainer": {"var_wo_ddp": weights}, "epoch": 3} if nested else weights, tmp_path / "var.pth")
    loaded = load_published_prior(tmp_path / "var.pth", tok)
    assert (loaded.settings, loaded.layout, loaded.num_classes) == (config, layout, 5)
    assert loaded.fingerprint == prior.fingerprint


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (NextTokenConfig(depth=1, width=128, num_heads=2, hidden=96), {"grid": (16, 16)}),
        (
            NextTokenConfig(depth=2, width=32, num_heads=4, num_kv_heads=2, hidden=64),
            {"num_heads": 4, "grid": (24, 24)},
        ),
        (NextTokenConfig(depth=2, width=16, num_heads=2, num_kv_heads=2, hidden=32), {"num_heads": 2, "grid": (3, 5)}),
    ],
)
def test_llamagen_of_other_sizes_is_inferred(config: NextTokenConfig, options: dict, tmp_path: Path) -> None:
    tok = tokenizer(scales=False)
    grid = options["grid"]
    layout = TokenLayout.of(16, [grid], (grid[0] * 4, grid[1] * 4), tok.fingerprint)
    prior = shaken(NextTokenTransformer(layout, 4, config))
    theirs = {llamagen_prior.NAMES.original(name, 0): value for name, value in prior.state_dict().items()}
    torch.save({"model": theirs | {"freqs_cis": torch.zeros(3)}, "optimizer": {}, "steps": 7}, tmp_path / "gpt.pt")
    loaded = load_published_prior(tmp_path / "gpt.pt", tok, **options)
    tokens, labels = torch.randint(16, (2, layout.num_tokens)), torch.tensor([0, 4])
    assert torch.equal(loaded(tokens, labels), prior(tokens, labels))


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    tok = tokenizer(scales=False)
    layout = TokenLayout.of(16, [(16, 16)], (64, 64), tok.fingerprint)
    prior = NextTokenTransformer(layout, 4, NextTokenConfig(depth=2, width=64, num_heads=1))
    theirs = {llamagen_prior.NAMES.original(name, 0): value for name, value in prior.state_dict().items()}
    del theirs["layers.1.attention.wo.weight"]
    theirs["norm.weight"] = torch.ones(3)
    theirs["surprise"] = torch.ones(2)
    torch.save(theirs, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match=r"1 missing: layers.1.attention.wo.weight; 1 surplus: surprise; 1 of another"):
        load_published_prior(tmp_path / "gpt.pt", tok, grid=(16, 16))
    with pytest.raises(ValueError, match="vocabulary size 8, expected 16"):
        load_published_prior(tmp_path / "gpt.pt", tokenizer(8, scales=False), grid=(16, 16))
    with pytest.raises(ValueError, match="family: got 'gpt'"):
        load_published_prior(tmp_path / "gpt.pt", tok, family="gpt")
    with pytest.raises(ValueError, match="heads: not an option of llamagen"):
        load_published_prior(tmp_path / "gpt.pt", tok, heads=2)
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"fits no family \(var, llamagen\); its first tensors are weight"):
        load_published_prior(tmp_path / "other.pt", tok)


# ---- the token grid -----------------------------------------------------------------------------------------------


@pytest.fixture
def gpt(tmp_path: Path) -> tuple[Path, SimpleVQVAE, NextTokenTransformer]:
    """A checkpoint of LlamaGen for 24 x 24 tokens; no weight depends on the grid."""
    tok = tokenizer(scales=False)
    layout = TokenLayout.of(16, [(24, 24)], (96, 96), tok.fingerprint)
    prior = NextTokenTransformer(layout, 4, NextTokenConfig(depth=1, width=64, num_heads=1))
    theirs = {llamagen_prior.NAMES.original(name, 0): value for name, value in prior.state_dict().items()}
    torch.save({"model": theirs}, tmp_path / "gpt.pt")
    return tmp_path / "gpt.pt", tok, prior


def test_a_grid_that_nothing_tells_is_asked_for(gpt: tuple[Path, SimpleVQVAE, NextTokenTransformer]) -> None:
    path, tok, prior = gpt
    with pytest.raises(ValueError, match=r"grid: got none.*expected \[16, 16\].*\[24, 24\]"):
        load_published_prior(path, tok)
    assert load_published_prior(path, tok, grid=(24, 24)).layout == prior.layout


def test_the_rotary_table_tells_the_grid(gpt: tuple[Path, SimpleVQVAE, NextTokenTransformer]) -> None:
    path, tok, prior = gpt
    tensors = torch.load(path, weights_only=True)["model"]
    torch.save(tensors | {"freqs_cis": torch.zeros(1 + 24 * 24, 32, 2)}, path)
    assert load_published_prior(path, tok).layout == prior.layout


# ---- the one door -------------------------------------------------------------------------------------------------


def test_the_door_opens_saved_and_published_priors(
    gpt: tuple[Path, SimpleVQVAE, NextTokenTransformer], tmp_path: Path
) -> None:
    path, tok, _ = gpt
    published = open_prior(path, tok, grid=(24, 24))
    published.save_pretrained(tmp_path / "prior")
    for opened in (open_prior(tmp_path / "prior"), open_prior(str(tmp_path / "prior"), tok)):
        assert opened.fingerprint == published.fingerprint
    with pytest.raises(ValueError, match="tokenizer: got none, expected the tokenizer of the published prior"):
        open_prior(path)
    with pytest.raises(ValueError, match="tokenizer: got vocabulary size 8, expected 16"):
        open_prior(tmp_path / "prior", tokenizer(8, scales=False))
    with pytest.raises(ValueError, match="grid: got options for"):
        open_prior(tmp_path / "prior", tok, grid=(16, 16))
    with pytest.raises(FileNotFoundError, match="nowhere: is not a folder"):
        open_prior("nowhere")
