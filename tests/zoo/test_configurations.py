"""Every family in many configurations: depths, widths, attention, scales, containers, images that are not square.

The oracle is `publishers.py`, the publishers' networks written out as plain functions of tensors under their names.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from publishers import IBQ, VAR, Gumbel, LlamaGen, MaskGIT, Network, OpenMAGVIT2, TiTok
from safetensors.torch import save_file

from smalti.tokenizers import Tokens
from smalti.zoo import read_published
from smalti.zoo.published.loading import Published

TOLERANCE = 2e-4
EXAMPLES = 4
OPTIONS = {"phases": [Phase.explicit, Phase.generate]}  # making a failure smaller would take minutes

MULTS = st.sampled_from([(1, 2), (1, 1, 2), (2, 1, 3), (1, 2, 2, 4), (2, 4)])
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.")
NESTINGS = (
    lambda tensors: tensors,
    lambda tensors: {"model": tensors, "optimizer": {"state": {0: {"step": 1}}}, "steps": 7},
    lambda tensors: {"state_dict": tensors, "global_step": 7, "callbacks": {}},
    lambda tensors: {"trainer": {"vae_local": tensors}, "epoch": 3},
)


@st.composite
def networks(draw, cls, **fixed):
    """A network of some configuration, not yet run."""
    mult = draw(MULTS)
    levels = st.lists(st.integers(0, len(mult) - 1), unique=True).map(lambda found: tuple(sorted(found)))
    given_sizes = {
        "ch": draw(st.sampled_from([32, 64])),
        "mult": mult,
        "blocks": draw(st.integers(1, 3)),
        "attention": draw(levels),
        "mid_attention": draw(st.booleans()),
        "z": draw(st.sampled_from([3, 8, 16])),
        "dim": draw(st.sampled_from([3, 4, 8])),
        "seed": draw(st.integers(0, 10**6)),
    }
    return cls(**{**given_sizes, **fixed})


@st.composite
def containers(draw, suffixes=(".pt", ".pth", ".ckpt", ".bin", ".safetensors"), prefixes=PREFIXES):
    """How to save: the ending, the prefix of all names, and what the tensors lie in."""
    return draw(st.sampled_from(suffixes)), draw(st.sampled_from(prefixes)), draw(st.sampled_from(NESTINGS))


GRIDS = st.tuples(st.integers(2, 4), st.integers(2, 4))


def photo(height: int, width: int, batch: int = 2) -> torch.Tensor:
    """Smooth images with some noise, in [-1, 1]."""
    y, x = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 5, width)[None]
    waves = [torch.sin(k * x + c) * torch.cos(y * (c + 1) - k) for k in range(1, batch + 1) for c in range(3)]
    noise = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (torch.stack(waves).reshape(batch, 3, height, width) * 0.8 + noise * 0.1).clamp(-1, 1)


def load(tensors: dict[str, torch.Tensor], container=(".pt", "", NESTINGS[0]), **options) -> Published:
    """What `read_published` makes of the tensors, saved in that container."""
    suffix, prefix, nesting = container
    renamed = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{suffix}")
        save_file(renamed, path) if suffix == ".safetensors" else torch.save(nesting(renamed), path)
        return read_published(path, **options)


@torch.no_grad()
def check(network: Network, image: torch.Tensor, name: str, container, unit_images: bool = False, **options) -> None:
    """Latent, indices and images are those of the network, and the family is recognised."""
    z = network.encode((image + 1) / 2 if unit_images else image)
    indices, z_q = network.quantize(z)
    expected = network.decode(z_q)
    expected = expected.clamp(0, 1) * 2 - 1 if unit_images else expected.clamp(-1, 1)
    assert expected.std() > 0.05
    published = load(network.tensors, container, **options)
    tokenizer = published.model
    assert published.family == name
    assert (tokenizer._latent(image) - z).abs().max() < TOLERANCE
    assert torch.equal(tokenizer.quantizer.encode(z), indices)
    of_network = Tokens((indices,), tuple(expected.shape[2:]), tokenizer.vocab_size)
    assert (tokenizer.decode(of_network) - expected).abs().max() < TOLERANCE
    tokens = tokenizer.encode(image)
    assert (tokens.indices[0] == indices).float().mean() > 0.9  # a near tie may fall the other way
    assert tokenizer.decode(tokens).shape == image.shape


def size(network: Network, grid: tuple[int, int]) -> tuple[int, int]:
    return grid[0] * network.stride, grid[1] * network.stride


@settings(max_examples=EXAMPLES, **OPTIONS)
@given(networks(Network), GRIDS, containers())
def test_taming(network, grid, container):
    check(network, photo(*size(network, grid)), "taming", container, family="taming")


@settings(max_examples=2, **OPTIONS)
@given(networks(Gumbel, dim=5), GRIDS, containers())
def test_taming_gumbel(network, grid, container):
    network.z = network.dim  # its quantizer projects what the convolution before it gives
    check(network, photo(*size(network, grid)), "taming", container)


@settings(max_examples=2, **OPTIONS)
@given(networks(Network), GRIDS)
def test_latent_diffusion(network, grid):
    container = (".ckpt", "first_stage_model.", NESTINGS[2])
    check(network, photo(*size(network, grid)), "latent-diffusion", container)


@settings(max_examples=EXAMPLES, **OPTIONS)
@given(networks(LlamaGen, mid_attention=True), GRIDS, containers(prefixes=(*PREFIXES, "gen_vision_model.")))
def test_llamagen(network, grid, container):
    check(network, photo(*size(network, grid)), "llamagen", container)


@settings(max_examples=EXAMPLES, **OPTIONS)
@given(networks(MaskGIT, attention=()), GRIDS, containers())
def test_maskgit(network, grid, container):
    check(network, photo(*size(network, grid)), "maskgit", container, unit_images=True)


@settings(max_examples=EXAMPLES, **OPTIONS)
@given(networks(OpenMAGVIT2, attention=()), GRIDS, containers())
def test_open_magvit2(network, grid, container):
    check(network, photo(*size(network, grid)), "open-magvit2", container, family="open-magvit2")


@settings(max_examples=EXAMPLES, **OPTIONS)
@given(networks(IBQ), GRIDS)
@torch.no_grad()
def test_ibq_averages(network, grid):
    """Raw weights that are wrong beside averaged ones that are right, as Lightning's averaging names them."""
    image = photo(*size(network, grid))
    network.decode(network.quantize(network.encode(image))[1])
    averages = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in network.tensors.items()}
    counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(5)}
    raw = {name: tensor * 0.9 for name, tensor in network.tensors.items()}
    loss = {"loss.discriminator.block.0.weight": torch.zeros(1)}
    published = load(raw | averages | counters | loss, (".ckpt", "", NESTINGS[2]))
    assert published.family == "ibq"
    assert "loss.discriminator.block.0.weight" in published.ignored
    averaged = load(network.tensors, family="ibq").model
    assert published.model.fingerprint == averaged.fingerprint
    check(network, image, "ibq", (".ckpt", "", NESTINGS[2]), family="ibq")


@settings(max_examples=3, **OPTIONS)
@given(st.data())
def test_titok(data):
    two_stages = data.draw(st.booleans())
    mult = (1, 2, 2, 4) if two_stages else (1,)  # the pixel decoder enlarges by the patch's side
    dim = data.draw(st.sampled_from([4, 12]))
    tokens = data.draw(st.sampled_from([6, 17]))
    seed = data.draw(st.integers(0, 10**6))
    network = TiTok(mult=mult, dim=dim, seed=seed, two_stages=two_stages, tokens=tokens)
    check(network, photo(network.side, network.side), "titok", data.draw(containers()), unit_images=True)


@settings(max_examples=6, **OPTIONS)
@given(
    networks(VAR, dim=8, z=8, mult=(1, 2)),
    st.sampled_from([(1, 2, 4), (1, 2, 3, 4, 6), (2, 3, 5, 7, 8, 9)]),
    st.sampled_from([0, 1, 2, 4]),
    st.booleans(),
    st.sampled_from([0.5, 0.3]),
    containers(),
)
@torch.no_grad()
def test_var(network, patch_nums, shared, znorm, ratio, container):
    network.patch_nums, network.shared, network.znorm, network.ratio = patch_nums, shared, znorm, ratio
    options = {"patch_nums": patch_nums, "phi_ratio": ratio, "metric": "cosine" if znorm else "euclidean"}
    last = patch_nums[-1]
    for wide in (1, 2):  # a square image, and one twice as wide
        grids = [(side, side * wide) for side in patch_nums]
        image = photo(*size(network, grids[-1]), batch=1)
        z = network.encode(image)
        indices, f_hats = network.scales(z, grids)
        expected = network.decode(f_hats[-1]).clamp(-1, 1)
        tokenizer = load(network.tensors, container, **options).model
        assert (tokenizer._latent(image) - z).abs().max() < TOLERANCE
        found = tokenizer.quantize.encode(z, tuple(grids))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, indices, strict=True))
        for ours, theirs in zip(tokenizer.quantizer.decode_progressive(tuple(indices)), f_hats, strict=True):
            assert (ours - theirs).abs().max() < 1e-5
        steps = network.decode(f_hats[0])  # the image after the first scale
        assert (tokenizer.fhat_to_img(f_hats[0]) - steps.clamp(-1, 1)).abs().max() < TOLERANCE
        listed = [scale.flatten(1) for scale in indices]
        assert (tokenizer.idxBl_to_img(listed, grids=grids) - expected).abs().max() < TOLERANCE
        assert tokenizer.encode(image).grids == (*grids[:-1], (last, last * wide))
    with pytest.raises(ValueError, match=rf"patch_nums: .*the {len(patch_nums)} sides"):
        load(network.tensors, container)


@torch.no_grad()
def test_shards_of_a_large_model(tmp_path):
    """Of a model in shards only those with parts of the tokenizer are read: the others need not even be there."""
    network = LlamaGen(mult=(1, 2), attention=(1,))
    network.decode(network.quantize(network.encode(photo(8, 8)))[1])
    tensors = {f"model.vqmodel.{name}": tensor.contiguous() for name, tensor in network.tensors.items()}
    names = list(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, inside in halves.items():
        save_file({name: tensors[name] for name in inside}, tmp_path / shard)
    where = {name: shard for shard, inside in halves.items() for name in inside}
    where |= {"model.language_model.layers.0.weight": "language.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    whole = load(network.tensors).model
    assert read_published(tmp_path).model.fingerprint == whole.fingerprint
    index.write_text(json.dumps({"weight_map": {**where, names[0]: "../a.safetensors"}}))
    with pytest.raises(ValueError, match=r"'\.\./a\.safetensors', expected a file in the same folder"):
        read_published(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match=r"b\.safetensors"):
        read_published(tmp_path)


@torch.no_grad()
def test_a_continuous_autoencoder_is_refused():
    """The KL autoencoders of latent diffusion have taming's names and no codebook."""
    network = Network()
    network.decode(network.encode(photo(8, 8)))
    with pytest.raises(ValueError, match=r"as family 'taming'.*1 missing: quantize\.embedding\.weight"):
        load(network.tensors)
