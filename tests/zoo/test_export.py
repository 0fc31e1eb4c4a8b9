"""`smalti export` to the publishers' formats: their own state dicts come back, and their code computes the same.

The publishers' code is diffusers itself, and the functions of `publishers.py` for the others: these draw a new tensor
for every name that they miss, so equal sets of names mean that a strict `load_state_dict` takes the file.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from published import checkpoint, moved
from publishers import VAR, LlamaGen, Network
from random_weights import DIFFUSERS, codes_like, photo, shaken

import smalti
from smalti.cli import main
from smalti.jobs.export import ExportConfig
from smalti.tokenizers import SimpleVQVAE, Tokenizer
from smalti.zoo import build, load_published, open_tokenizer
from smalti.zoo.export.formats import FORMATS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

ENCODER = {"widths": [32, 64], "num_res_blocks": 1, "latent_channels": 4}
CODES = {"num_embeddings": 24, "embedding_dim": 4, "init": None, "revival": None}
SCALES = {"num_embeddings": 24, "embedding_dim": 4, "patch_nums": [1, 2, 3, 8]}
COUNTERS = ("quantize.ema_vocab_hit_SV", "quantize.codebook_used")
"""Buffers that count in training; a loaded tokenizer starts them anew."""


def small(model: str, quantizer: dict | None = None, encoder: dict | None = None, **changes: object) -> Tokenizer:
    """A small tokenizer with random codes that are spread like its latents."""
    scales = {**SCALES, "quantizer": CODES} if model == "var-f16" else CODES
    torch.manual_seed(0)
    made = build(model, encoder={**ENCODER, **(encoder or {})}, quantizer={**scales, **(quantizer or {})}, **changes)
    for module in made.quantizer.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.3)
    return made.eval()


def exported(tokenizer: Tokenizer, form: str, folder: Path) -> Path:
    """The folder that the command writes."""
    tokenizer.save_pretrained(folder / "model")
    assert main(["export", str(folder / "model"), str(folder / "out"), "--format", form]) == 0
    return folder / "out"


def state_of(out: Path) -> dict[str, torch.Tensor]:
    """The publisher's state dict in an export."""
    (path,) = (path for path in out.iterdir() if path.suffix in (".pth", ".ckpt", ".pt"))
    tree = torch.load(path, weights_only=True)
    return tree.get("state_dict", tree.get("model", tree))


def same(tokenizer: Tokenizer, again: Tokenizer, image: torch.Tensor) -> None:
    """Bit-equal tokens and images."""
    tokens, others = tokenizer.encode(image), again.encode(image)
    assert len(torch.cat([scale.flatten() for scale in tokens.indices]).unique()) > 5
    for one, other in zip(tokens.indices, others.indices, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(tokenizer.decode(tokens), again.decode(others))


GOLDENS = {"var_vqvae": "var", "taming_vqgan_f16": "taming", "llamagen_vq16": "llamagen"}


@pytest.mark.parametrize("name", GOLDENS)
def test_a_published_checkpoint_comes_back(name, golden, tmp_path):
    tokenizer = load_published(moved(golden, name, tmp_path))
    out = exported(tokenizer, GOLDENS[name], tmp_path)
    tree = torch.load(checkpoint(golden, name), weights_only=True)
    theirs = tree.get("state_dict", tree.get("model", tree))
    theirs = {key: value.float() for key, value in theirs.items() if not key.startswith("loss.")}
    ours = state_of(out)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key].shape == value.shape
        assert key in COUNTERS or torch.equal(ours[key], value), key
    same(tokenizer, open_tokenizer(out), photo(128, 128))


@pytest.mark.parametrize("kind", DIFFUSERS)
@torch.no_grad()
def test_diffusers_reads_its_own_model_again(kind, tmp_path):
    options = {"latent_channels": 4, "num_vq_embeddings": 96, "layers_per_block": 1, **DIFFUSERS[kind]}
    model = diffusers.VQModel(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        **options,
    )
    image = photo(64, 48)
    codes_like(shaken(model).encode(image).latents, model.quantize.embedding)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer = load_published(tmp_path / "theirs")
    out = exported(tokenizer, "diffusers", tmp_path)
    again = diffusers.VQModel.from_pretrained(out)
    theirs, ours = model.state_dict(), again.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    latent = again.encode(image).latents
    tokens = tokenizer.encode(image)
    assert torch.equal(again.quantize(latent)[2][2].flatten(), tokens.indices[0].flatten())
    assert (again.decode(latent).sample.clamp(-1, 1) - tokenizer.decode(tokens)).abs().max() < 1e-4
    same(tokenizer, open_tokenizer(out), image)


TRAINED = {
    "taming": ("vqgan-f8", {}),
    "taming by gradient": ("vqgan-f8", {"quantizer": {"type": "VectorQuantizer"}}),
    "taming with attention": ("vqgan-f8", {"encoder": {"attention_levels": [0, 1]}}),
    "llamagen": ("llamagen-f16", {}),
    "llamagen euclidean": ("llamagen-f16", {"quantizer": {"metric": "euclidean"}}),
    "var": ("var-f16", {}),
    "var, one φ": ("var-f16", {"quantizer": {"num_phi": 1}}),
    "var, two φ": ("var-f16", {"quantizer": {"num_phi": 2, "phi_ratio": 0.25}}),
    "var, z-norm": (
        "var-f16",
        {"quantizer": {"quantizer": {"type": "ZNormVectorQuantizer", "num_embeddings": 24, "embedding_dim": 4}}},
    ),
    "diffusers": ("vqgan-f8", {"encoder": {"widths": [32, 48], "style": {"norm_groups": 16}}}),
}


@pytest.mark.parametrize("case", TRAINED)
@torch.no_grad()
def test_a_tokenizer_trained_here_is_the_same_in_the_publishers_code(case, tmp_path):
    model, changes = TRAINED[case]
    tokenizer, form = small(model, **changes), case.split()[0].strip(",")
    out, image = exported(tokenizer, form, tmp_path), photo(16, 16)
    same(tokenizer, open_tokenizer(out), image)
    if form == "diffusers":
        theirs = diffusers.VQModel.from_pretrained(out)
        found = theirs.quantize(theirs.encode(image).latents)[2][2]
        assert torch.equal(found.flatten(), tokenizer.encode(image).flatten().flatten())
        return
    state, mult = state_of(out), (1, 2)
    sizes = {"mult": mult, "attention": (1,), "z": 4, "dim": 4, "codes": 24, "tensors": dict(state)}
    if form == "var":
        config = json.loads((out / "config.json").read_text())
        theirs = VAR(
            **sizes, patch_nums=tuple(config["v_patch_nums"]), shared=config["share_quant_resi"],
            znorm=config["using_znorm"], ratio=config["quant_resi"],
        )  # fmt: skip
        found, f_hats = theirs.scales(theirs.encode(image), [(side, side) for side in theirs.patch_nums])
        z_q = f_hats[-1]
    else:
        if form == "taming":
            config = yaml.safe_load((out / "config.yaml").read_text())["model"]["params"]["ddconfig"]
            attention = (256 // side for side in config["attn_resolutions"])
            sizes["attention"] = tuple(divisor.bit_length() - 1 for divisor in attention)
        cosine = form == "llamagen" and json.loads((out / "config.json").read_text())["codebook_l2_norm"]
        theirs = (LlamaGen if form == "llamagen" else Network)(**sizes)
        indices, z_q = (theirs if cosine or form == "taming" else Euclidean(**sizes)).quantize(theirs.encode(image))
        found = [indices]
    reconstruction = theirs.decode(z_q).clamp(-1, 1)
    assert set(theirs.tensors) | set(COUNTERS) == set(state) | set(COUNTERS)
    tokens = tokenizer.encode(image)
    assert all(torch.equal(one, other) for one, other in zip(found, tokens.indices, strict=True))
    assert (reconstruction - tokenizer.decode(tokens)).abs().max() < 1e-4


class Euclidean(LlamaGen):
    """LlamaGen without `codebook_l2_norm`."""

    quantize = Network.quantize


REFUSED = {
    "var of one map": ("var", "vqgan-f8", {}, "quantizer: got EMAVectorQuantizer, expected MultiScaleQuantizer"),
    "a codebook per scale": ("var", "var-f16", {"quantizer": {"num_codebooks": 4}}, "num_codebooks: got 4, expected 1"),
    "cosine scales": (
        "var", "var-f16", {"quantizer": {"quantizer": {**CODES, "metric": "cosine"}}}, "metric: got 'cosine'"
    ),
    "another latent": ("var", "var-f16", {"encoder": {"latent_channels": 6}}, "latent_channels: got 6, expected 4"),
    "attention elsewhere": ("var", "var-f16", {"encoder": {"attention_levels": [0]}}, "attention_levels: got"),
    "fsq": (
        "taming", "vqgan-f8",
        {"quantizer": {"type": "FiniteScalarQuantizer", "levels": [3, 3, 3, 3]}}, "quantizer: got FiniteScalarQ",
    ),
    "scales": ("llamagen", "var-f16", {}, "quantizer: got MultiScaleQuantizer, expected one codebook"),
    "cosine codes": ("taming", "llamagen-f16", {}, "metric: got 'cosine', expected euclidean"),
    "cosine codes of diffusers": ("diffusers", "llamagen-f16", {}, "metric: got 'cosine', expected euclidean"),
    "no whole multiple": ("taming", "vqgan-f8", {"encoder": {"widths": [64, 96]}}, "widths: got (64, 96)"),
    "heads": ("diffusers", "vqgan-f8", {"encoder": {"style": {"num_heads": 2}}}, "encoder.style.num_heads: got 2"),
    "pixels in [0, 1]": ("taming", "vqgan-f8", {"image_range": [0, 1]}, "image_range: got (0.0, 1.0)"),
    "grey images": ("llamagen", "llamagen-f16", {"image_channels": 1}, "image_channels: got 1, expected 3"),
    "no convolution around the codes": (
        "taming", "vqgan-f8", {"encoder": {"projection": 0}}, "projection: got 0, expected 1",
    ),
    "deeper decoder": (
        "llamagen", "llamagen-f16", {"decoder": {**ENCODER, "num_res_blocks": 3}}, "decoder.num_res_blocks: got [3, 3]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_express_is_refused_before_anything_is_written(case, tmp_path, capsys):
    form, model, changes, message = REFUSED[case]
    changes = dict(changes)
    if case == "fsq":
        tokenizer = build(model, encoder=ENCODER, quantizer=changes["quantizer"])
    else:
        tokenizer = small(model, **changes)
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", form]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"smalti export: error: {message}")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("form", ["var", "taming", "llamagen", "diffusers"])
def test_other_networks_are_refused(form, tmp_path):
    SimpleVQVAE(8, 4, 4).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="model: got a SimpleVQVAE, expected a VQGAN"):
        smalti.export(tmp_path / "model", tmp_path / "out", form)


def test_an_export_is_replaced_only_by_force_and_says_how_to_load_it(tmp_path, capsys):
    tokenizer = small("vqgan-f8")
    out = exported(tokenizer, "taming", tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"{out}: config.yaml, last.ckpt (")
    assert f"torch.load('{out}/last.ckpt')" in said[-1]
    assert "OmegaConf.load('OUT/config.yaml')" in (out / "README.md").read_text()
    with pytest.raises(FileExistsError, match="already exists"):
        smalti.export(tmp_path / "model", out, "diffusers")
    result = smalti.export(str(tmp_path / "model"), str(out), "diffusers", force=True)
    assert result.files == ("config.json", "diffusion_pytorch_model.safetensors")
    assert sorted(path.name for path in out.iterdir()) == sorted((*result.files, "README.md"))


def test_every_format_is_a_choice_of_the_command():
    hint = ExportConfig.__annotations__["format"]
    assert set(hint.__args__) == set(FORMATS)
