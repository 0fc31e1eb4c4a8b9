"""Tokenizers of the packages diffusers and transformers: a small random model there, saved, loaded here, compared."""

import warnings

import pytest
import torch
from random_weights import DIFFUSERS, codes_like, photo, shaken

from smalti.zoo import load, load_published

with warnings.catch_warnings():  # the packages' own imports may warn
    warnings.simplefilter("ignore")
    import diffusers
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE, Emu3VQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEConfig

TOLERANCE = 2e-4


@pytest.mark.parametrize("kind", DIFFUSERS)
@torch.no_grad()
def test_diffusers_vqmodel(kind, tmp_path):
    options = {"latent_channels": 4, "num_vq_embeddings": 96, "layers_per_block": 1, **DIFFUSERS[kind]}
    model = diffusers.VQModel(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        **options,
    )
    shaken(model)
    image = photo(64, 48)
    latent = model.encode(image).latents
    codes_like(latent, model.quantize.embedding)
    model.save_pretrained(tmp_path)
    tokenizer = load_published(tmp_path)
    tokens = tokenizer.encode(image)
    expected = model.quantize(latent)[2][2]
    assert torch.equal(tokens.indices[0].flatten(), expected.flatten())
    assert len(expected.unique()) > 20
    reconstruction = model.decode(latent).sample
    assert (tokenizer.decode(tokens) - reconstruction.clamp(-1, 1)).abs().max() < TOLERANCE
    assert reconstruction.abs().max() > 0.1


@torch.no_grad()
def test_latent_diffusion_first_stage_against_diffusers(tmp_path):
    """diffusers converts latent-diffusion's checkpoints; here its tensors take their original names and prefix."""
    model = shaken(
        diffusers.VQModel(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            layers_per_block=2,
            latent_channels=3,
            num_vq_embeddings=64,
        )
    )
    renamed = {"first_stage_model." + ldm_name(name): value for name, value in model.state_dict().items()}
    for name, value in renamed.items():
        if name.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")):
            renamed[name] = value[:, :, None, None]
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 3, 3, 3), "betas": torch.zeros(5)}
    torch.save({"state_dict": renamed | unet, "global_step": 7}, tmp_path / "model.ckpt")
    image = photo(32, 64)
    codes_like(model.encode(image).latents, model.quantize.embedding)
    renamed["first_stage_model.quantize.embedding.weight"] = model.quantize.embedding.weight.data
    torch.save({"state_dict": renamed | unet, "global_step": 7}, tmp_path / "model.ckpt")
    tokenizer = load_published(tmp_path / "model.ckpt")
    assert tokenizer.config()["source"]["family"] == "latent-diffusion"
    latent = model.encode(image).latents
    assert torch.equal(tokenizer.encode(image).indices[0].flatten(), model.quantize(latent)[2][2])
    reconstruction = model.decode(latent).sample.clamp(-1, 1)
    assert (tokenizer(image).reconstruction - reconstruction).abs().max() < TOLERANCE


def ldm_name(name: str) -> str:
    """The name of latent-diffusion for one of diffusers (two levels)."""
    for theirs, ours in (
        ("down_blocks", "down"),
        ("up_blocks.0", "up.1"),
        ("up_blocks.1", "up.0"),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("resnets", "block"),
        ("attentions", "attn"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
    ):
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("attn_type", ["vanilla", "none"])
@torch.no_grad()
def test_chameleon_encodes(attn_type, tmp_path):
    config = ChameleonVQVAEConfig(
        embed_dim=8, num_embeddings=64, latent_channels=12, base_channels=32, channel_multiplier=[1, 2, 2],
        num_res_blocks=1, resolution=64, attn_resolutions=[32], attn_type=attn_type,
    )  # fmt: skip
    model = shaken(ChameleonVQVAE(config))
    image = photo(64, 32)
    codes_like(model.quant_conv(model.encoder(image)), model.quantize.embedding)
    model.save_pretrained(tmp_path)
    tokenizer = load_published(tmp_path)
    tokens = tokenizer.encode(image)
    assert torch.equal(tokens.indices[0].flatten(), model.encode(image).image_tokens)
    assert len(tokens.indices[0].unique()) > 20
    with pytest.raises(ValueError, match="no decoder"):
        tokenizer.decode(tokens)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").encode(image).indices[0], tokens.indices[0])


@torch.no_grad()
def test_janus(tmp_path):
    config = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=64, latent_channels=12, base_channels=32, channel_multiplier=[1, 2, 2],
        num_res_blocks=1, num_patches=8,
    )  # fmt: skip
    model = shaken(JanusVQVAE(config))
    image = photo(32, 32)
    codes_like(model.quant_conv(model.encoder(image)), model.quantize.embedding)
    model.save_pretrained(tmp_path)
    tokenizer = load_published(tmp_path)
    assert tokenizer.config()["source"]["family"] == "janus"
    tokens = tokenizer.encode(image)
    expected = model.encode(image).image_tokens
    assert torch.equal(tokens.indices[0].flatten(), expected)
    reconstruction = model.decode(expected.view(2, -1)).clamp(-1, 1)
    assert (tokenizer.decode(tokens) - reconstruction).abs().max() < TOLERANCE
    assert tokenizer.encode(photo(48, 32)).grids == ((12, 8),)


@pytest.mark.parametrize("factor", [2, 4, 8])
@torch.no_grad()
def test_emu3_images(factor, tmp_path):
    config = Emu3VQVAEConfig(
        codebook_size=64, embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=[1, 2],
        num_res_blocks=1, attn_resolutions=[1], hidden_size=64, num_attention_heads=2,
        temporal_downsample_factor=factor,
    )  # fmt: skip
    model = shaken(Emu3VQVAE(config))
    image = photo(32, 24)
    tokenizer_latent = model.encoder(image.unsqueeze(1).repeat(1, factor, 1, 1, 1)).permute(0, 2, 1, 3, 4)
    codes_like(model.quant_conv(tokenizer_latent).squeeze(2), model.quantize.embedding)
    model.save_pretrained(tmp_path)
    tokenizer = load_published(tmp_path)
    tokens = tokenizer.encode(image)
    expected = torch.stack(model.encode(image, image_sizes=torch.tensor([[32, 24]] * 2)).image_tokens)
    assert torch.equal(tokens.indices[0], expected)
    assert len(expected.unique()) > 20
    reconstruction = model.decode(expected).clamp(-1, 1)
    assert (tokenizer.decode(tokens) - reconstruction).abs().max() < TOLERANCE
    tokenizer.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").decode(tokens), tokenizer.decode(tokens))
