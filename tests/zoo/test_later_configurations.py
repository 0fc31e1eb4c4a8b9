"""As `test_configurations.py`, for the families of `later_publishers.py`."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from later_publishers import DVAE, RQVAE, Cosmos, Infinity, LegacyMaskBit, MaskBit, MoVQ, ShowO, SimVQ, WeTok
from publishers import IBQ
from zoo.test_configurations import GRIDS, NESTINGS, OPTIONS, TOLERANCE, check, containers, load, networks, photo, size

from smalti.zoo import read_published


@settings(max_examples=2, **OPTIONS)
@given(networks(IBQ), GRIDS, containers())
def test_emu35_ibq(network, grid, container):
    check(network, photo(*size(network, grid)), "emu35-ibq", container, family="emu35-ibq")


@settings(max_examples=2, **OPTIONS)
@given(networks(SimVQ, attention=()), GRIDS, containers())
def test_simvq(network, grid, container):
    network.dim = network.z
    check(network, photo(*size(network, grid)), "simvq", container)


@torch.no_grad()
def test_simvq_averages():
    """The frozen codebook has no average; everything else is wrong where it is not averaged."""
    network = SimVQ(seed=1)
    image = photo(*size(network, (3, 4)))
    network.decode(network.quantize(network.encode(image))[1])
    right = load(network.tensors).model
    frozen = "quantize.embedding.weight"
    names = [name for name in network.tensors if name != frozen]
    averages = {f"model_ema.{name.replace('.', '')}": network.tensors[name] for name in names}
    raw = {name: network.tensors[name] * 0.9 for name in names} | {frozen: network.tensors[frozen]}
    assert load(raw | averages, (".ckpt", "", NESTINGS[2])).model.fingerprint == right.fingerprint


@settings(max_examples=2, **OPTIONS)
@given(networks(MoVQ), GRIDS, containers())
def test_movqgan(network, grid, container):
    check(network, photo(*size(network, grid)), "movqgan", container)


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=1, **OPTIONS)
@given(networks(RQVAE), GRIDS, containers())
def test_rqvae(shared, network, grid, container):
    network.shared = shared
    check(network, photo(*size(network, grid)), "rqvae", container)
    parts = load(network.tensors).model.quantizer.quantizers
    assert len(parts) == (1 if shared else 3)


@pytest.mark.parametrize("cls", [MaskBit, LegacyMaskBit])
@settings(max_examples=1, **OPTIONS)
@given(st.data())
def test_maskbit(cls, data):
    network = data.draw(networks(cls, attention=(), mult=(1, 1, 2)))
    network.dim = network.z
    image = photo(*size(network, data.draw(GRIDS)))
    check(network, image, "maskbit", data.draw(containers()), unit_images=True)


@pytest.mark.parametrize("counts", [((2, 1, 1), (1, 3, 2)), ((1, 1, 1), (2, 2, 2))])
@torch.no_grad()
def test_showo_magvit2(counts):
    network = ShowO(mult=(1, 2, 1), decoder_mult=(1, 1, 3), counts=counts, z=5, dim=5)
    check(network, photo(*size(network, (3, 2))), "showo-magvit2", (".bin", "", NESTINGS[0]))


@pytest.mark.parametrize(("groups", "noise"), [(2, False), (3, True), (8, False)])
@torch.no_grad()
def test_wetok(groups, noise):
    network = WeTok(mult=(1, 1, 2), z=8 * groups, dim=8 * groups, noise=noise)
    image = photo(*size(network, (3, 4)))
    if not noise:
        check(network, image, "wetok", (".ckpt", "", NESTINGS[2]), family="wetok")
        return
    indices, z_q = network.quantize(network.encode(image))
    network.decode(z_q)
    tokenizer = load(network.tensors).model  # the noise alone tells the family
    for seed in (3, 4):
        torch.manual_seed(seed)
        expected = network.decode(z_q).clamp(-1, 1)
        torch.manual_seed(seed)
        found = tokenizer.decode(tokenizer.encode(image))
        assert torch.equal(tokenizer.encode(image).indices[0], indices)
        assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("rounds", "samplings"), [(2, 1), (1, 3), (1, 0), (2, 2)])
@torch.no_grad()
def test_cosmos_di(rounds, samplings):
    network = Cosmos(mult=(1, 2, 1), dim=4, rounds=rounds, samplings=samplings)
    image = photo(*size(network, (3, 4)))
    check(network, image, "cosmos-di", (".pt", "", NESTINGS[0]), levels=[8, 5, 8, 5])
    levels = {"inv_quant.quantizer._levels": torch.tensor([8, 5, 8, 5])}
    assert load(network.tensors | levels).model.quantizer.levels == [8, 5, 8, 5]
    with pytest.raises(ValueError, match=r"levels: .*4 dimensions"):
        load(network.tensors)


@pytest.mark.parametrize(("groups", "blocks"), [(3, 1), (4, 2), (1, 3)])
@torch.no_grad()
def test_dalle_dvae(groups, blocks):
    network = DVAE(ch=8, groups=groups, blocks=blocks, codes=50)
    image = photo(*size(network, (3, 4)))
    z = network.encode((image + 1) / 2 * 0.8 + 0.1)
    indices, z_q = network.quantize(z)
    expected = network.decode(z_q).clamp(0, 1) * 2 - 1
    published = load(network.tensors)
    tokenizer = published.model
    assert published.family == "dalle-dvae"
    assert (tokenizer._latent(image) - z).abs().max() < TOLERANCE
    assert torch.equal(tokenizer.quantizer.encode(z), indices)
    assert (tokenizer.quantizer.decode(indices) - z_q).abs().max() == 0
    tokens = tokenizer.encode(image)
    assert (tokens.indices[0] == indices).float().mean() > 0.9
    assert (tokenizer.decode(replace(tokens, indices=(indices,))) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("wrapped", "bits"), [(True, 6), (False, 70)])
@torch.no_grad()
def test_infinity_bsq(wrapped, bits):
    network = Infinity(mult=(1, 2, 1), z=bits, dim=bits, wrapped=wrapped)
    image = photo(*size(network, (4, 4)))
    z = network.encode(image)
    bits, z_q = network.quantize(z)
    expected = network.decode(z_q).clamp(-1, 1)
    published = load(network.tensors, (".pth", "", NESTINGS[0]), patch_nums=(1, 2, 4))
    assert published.family == "infinity-bsq"
    tokenizer = published.model
    assert (tokenizer._latent(image) - z).abs().max() < TOLERANCE
    tokens = tokenizer.encode(image)
    assert torch.equal(tokens.flatten(), bits)
    assert (tokenizer.decode(tokens) - expected).abs().max() < TOLERANCE


F16 = (256, (1, 1, 2, 2, 4), 4, (4,))
RELEASED = {
    "Emu3.5-VisionTokenizer": (IBQ(*F16, z=256, dim=256, codes=131072), "emu35-ibq", 131072, 16, 455),
    "vq_log/simvq_262k": (SimVQ(128, (1, 2, 2, 4), 2, z=128, dim=128, codes=262144), "simvq", 262144, 8, None),
    "movqgan_67M": (MoVQ(128, (1, 2, 2, 4), 2, (3,), z=4, dim=4, codes=16384), "movqgan", 16384, 8, None),
    "movqgan_102M": (MoVQ(128, (1, 2, 2, 4), 4, (3,), z=4, dim=4, codes=16384), "movqgan", 16384, 8, 102),
    "movqgan_270M": (MoVQ(256, (1, 2, 2, 4), 2, (3,), z=4, dim=4, codes=16384), "movqgan", 16384, 8, None),
    "maskbit_tokenizer_18bit": (MaskBit(128, (1, 1, 2, 2, 4), 2, z=18, dim=18), "maskbit", 2**18, 16, None),
    "vqgan_plus_12bit": (LegacyMaskBit(128, (1, 1, 2, 2, 4), 2, z=64, dim=64, codes=4096), "maskbit", 4096, 16, None),
    "imagenet_1.4B (RQ-VAE)": (
        RQVAE(128, (1, 1, 2, 2, 4, 4), 2, (5,), z=256, dim=256, codes=16384, levels=4), "rqvae", 16384, 32, None,
    ),
    "magvitv2 (Show-o)": (
        ShowO(
            128, (1, 2, 2, 4, 4), z=13, dim=13, decoder_mult=(1, 1, 2, 2, 4), counts=((4, 3, 4, 3, 4), (4, 4, 3, 4, 3))
        ),
        "showo-magvit2", 8192, 16, 95,
    ),
    "GeneralDomain/compratio768 (WeTok)": (
        WeTok(256, (1, 1, 2, 2, 4, 8), 4, z=32, dim=32, noise=True), "wetok", 256, 32, None,
    ),
    "Cosmos-0.1-Tokenizer-DI8x8": (
        Cosmos(128, (2, 4, 4), 2, z=256, dim=6, rounds=2, samplings=1), "cosmos-di", 64000, 8, None,
    ),
    "Cosmos-Tokenize1-DI16x16-360p": (
        Cosmos(128, (2, 4, 4), 2, z=256, dim=6, rounds=1, samplings=3), "cosmos-di", 64000, 16, None,
    ),
    "infinity_vae_d16": (Infinity(128, (1, 2, 4, 4, 4), 2, z=16, dim=16), "infinity-bsq", 2, 16, 110),
    "infinity_vae_d64": (Infinity(128, (1, 2, 4, 4, 4), 2, z=64, dim=64), "infinity-bsq", 2, 16, 110),
    "infinity_vae_d14 (stride 8)": (Infinity(128, (1, 2, 4, 4), 2, z=14, dim=14), "infinity-bsq", 2, 8, 82),
    "encoder.pkl, decoder.pkl": (
        DVAE(256, blocks=2, groups=4, codes=8192, code_width=128, decoder_ch=256), "dalle-dvae", 8192, 8, None,
    ),
}  # fmt: skip
"""Published sizes: network, family, codes, stride, and millions of weights where they are known."""


@torch.no_grad()
def shapes_of(network) -> dict[str, torch.Tensor]:
    """Names and shapes of a checkpoint, on the meta device."""
    with torch.device("meta"):
        z = network.encode(torch.zeros(1, 3, 2 * network.stride, 2 * network.stride))
        if isinstance(network, ShowO):
            network.tensor("quantize.power_vals", network.z)
        elif isinstance(network, IBQ | SimVQ | MoVQ | LegacyMaskBit):
            table = network.tensor("quantize.embedding.weight", network.codes, network.dim)
            if isinstance(network, SimVQ):
                network.linear("quantize.embedding_proj", table, network.dim)
        network.decode(torch.zeros_like(z))
    if isinstance(network, RQVAE):  # whether the tables are equal is looked at
        table = torch.zeros(network.codes + 1, network.dim)
        return network.tensors | {f"quantizer.codebooks.{i}.weight": table for i in range(network.levels)}
    return network.tensors


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name, tmp_path):
    network, family, codes, stride, millions = RELEASED[name]
    torch.save(shapes_of(network), tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text("ddconfig: {}" if family == "emu35-ibq" else "")
    with torch.device("meta"):
        published = read_published(tmp_path / "model.ckpt")
    assert published.family == family
    assert (published.model.vocab_size, published.model.stride) == (codes, stride)
    if millions is not None:
        assert round(sum(p.numel() for p in published.model.parameters()) / 1e6) == millions
