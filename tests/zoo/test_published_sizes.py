"""The published checkpoints at their real sizes, without numbers: on the meta device a tensor is a shape.

Names and shapes come from the publishers' options by way of `publishers.py`; what the publishers say of their models,
codes, stride and number of weights, is what must come out.
"""

from dataclasses import dataclass

import pytest
import torch
from publishers import IBQ, VAR, Gumbel, LlamaGen, MaskGIT, Network, OpenMAGVIT2, TiTok

from smalti.zoo import load_published

F16 = {"ch": 128, "mult": (1, 1, 2, 2, 4), "blocks": 2, "attention": (4,), "z": 256}


@dataclass
class Released:
    """What is known of a published checkpoint."""

    network: Network
    family: str
    vocab_size: int
    components: int
    stride: int
    millions: float | None = None
    """Weights in millions, where the publisher states them."""


def titok(width: int, layers: int, decoder: tuple[int, int], tokens: int, two_stages: bool) -> TiTok:
    sizes = {"dim": 12, "codes": 4096} if two_stages else {"dim": 64, "codes": 8192}
    pixels = {"ch": 128, "mult": (1, 1, 2, 2, 4), "blocks": 2, "z": 256}
    return TiTok(
        **pixels, **sizes, two_stages=two_stages, width=width, layers=layers, side=256, patch=16, tokens=tokens,
        pixel_codes=1024, decoder_width=decoder[0], decoder_layers=decoder[1],
    )  # fmt: skip


S, B, L = (512, 8), (768, 12), (1024, 24)

RELEASED = {
    "vae_ch160v4096z32": Released(
        VAR(160, (1, 1, 2, 2, 4), 2, (4,), z=32, dim=32, codes=4096, patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
        "var", 4096, 32, 16,
    ),
    "vqgan_imagenet_f16_1024": Released(Network(**F16, dim=256, codes=1024), "taming", 1024, 256, 16),
    "vqgan_imagenet_f16_16384": Released(Network(**F16, dim=256, codes=16384), "taming", 16384, 256, 16),
    "vqgan_gumbel_f8": Released(
        Gumbel(128, (1, 1, 2, 4), 2, (3,), z=256, dim=256, codes=8192), "taming", 8192, 256, 8,
    ),
    "vq-f4": Released(Network(128, (1, 2, 4), 2, z=3, dim=3, codes=8192), "latent-diffusion", 8192, 3, 4),
    "vq-f4-noattn": Released(
        Network(128, (1, 2, 4), 2, mid_attention=False, z=3, dim=3, codes=8192), "latent-diffusion", 8192, 3, 4,
    ),
    "vq-f8": Released(
        Network(128, (1, 2, 2, 4), 2, (3,), z=4, dim=4, codes=16384), "latent-diffusion", 16384, 4, 8,
    ),
    "vq-f8-n256": Released(Network(128, (1, 2, 2, 4), 2, (3,), z=4, dim=4, codes=256), "latent-diffusion", 256, 4, 8),
    "vq-f16": Released(Network(**{**F16, "z": 8}, dim=8, codes=16384), "latent-diffusion", 16384, 8, 16),
    "vq_ds16_c2i": Released(LlamaGen(**F16, dim=8, codes=16384), "llamagen", 16384, 8, 16, 72),
    "vq_ds8_c2i": Released(
        LlamaGen(128, (1, 2, 2, 4), 2, (3,), z=256, dim=8, codes=16384), "llamagen", 16384, 8, 8, 70,
    ),
    "maskgit-vqgan-imagenet-f16-256": Released(
        MaskGIT(128, (1, 1, 2, 2, 4), 2, z=256, codes=1024, dim=256), "maskgit", 1024, 256, 16,
    ),
    "tokenizer_titok_s128": Released(titok(*S, S, 128, True), "titok", 4096, 12, 256),
    "tokenizer_titok_b64": Released(titok(*B, B, 64, True), "titok", 4096, 12, 256),
    "tokenizer_titok_l32": Released(titok(*L, L, 32, True), "titok", 4096, 12, 256),
    "tokenizer_titok_bl64_vq8k": Released(titok(*B, L, 64, False), "titok", 8192, 64, 256),
    "tokenizer_titok_bl128_vq8k": Released(titok(*B, L, 128, False), "titok", 8192, 64, 256),
    "tokenizer_titok_sl256_vq8k": Released(titok(*S, L, 256, False), "titok", 8192, 64, 256),
    **{
        f"imagenet256_{codes} (IBQ)": Released(IBQ(**{**F16, "blocks": 4}, dim=256, codes=codes), "ibq", codes, 256, 16)
        for codes in (1024, 8192, 16384, 262144)
    },
    "imagenet_128_L (Open-MAGVIT2)": Released(
        OpenMAGVIT2(128, (1, 2, 2, 4), 4, z=18), "open-magvit2", 2**18, 18, 8,
    ),
    "imagenet_256_L (Open-MAGVIT2)": Released(
        OpenMAGVIT2(128, (1, 1, 2, 2, 4), 4, z=18), "open-magvit2", 2**18, 18, 16,
    ),
    "pretrain256_16384 (Open-MAGVIT2)": Released(
        OpenMAGVIT2(128, (1, 1, 2, 2, 4), 4, z=14), "open-magvit2", 2**14, 14, 16,
    ),
}  # fmt: skip


@torch.no_grad()
def tensors_of(released: Released) -> dict[str, torch.Tensor]:
    """Names and shapes of a checkpoint."""
    network = released.network
    with torch.device("meta"):
        side = getattr(network, "side", 2 * network.stride)
        z = network.encode(torch.zeros(1, 3, side, side))
        if isinstance(network, Gumbel):
            network.quantize(z)
        elif not isinstance(network, OpenMAGVIT2):
            network.tensor("quantize.embedding.weight", network.codes, network.dim)
        if isinstance(network, VAR):
            network.phi(0, z)
            network.tensor("quantize.ema_vocab_hit_SV", len(network.patch_nums), network.codes)
        network.decode(z)
    tensors = dict(network.tensors)
    if released.family == "latent-diffusion":
        return {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    if released.family == "taming":
        return tensors | {"loss.discriminator.main.0.bias": torch.zeros(1)}
    if released.family == "ibq":
        tensors |= {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in network.tensors.items()}
    return tensors


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints(name, tmp_path):
    released = RELEASED[name]
    tensors = tensors_of(released)
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    with torch.device("meta"):
        tokenizer = load_published(tmp_path / "model.ckpt")
    assert tokenizer.config()["source"]["family"] == released.family
    assert (tokenizer.vocab_size, tokenizer.quantizer.embedding_dim) == (released.vocab_size, released.components)
    assert tokenizer.stride == released.stride
    if isinstance(released.network, TiTok):
        assert tokenizer.latent_grid((256, 256)) == (1, released.network.tokens)
    if released.millions is not None:
        weights = sum(parameter.numel() for parameter in tokenizer.parameters())
        assert round(weights / 1e6) == released.millions
