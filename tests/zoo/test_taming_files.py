"""Files of later projects whose networks are taming's: what each has around the tensors, and that it loads.

Chameleon's image tokenizer is also that of Anole and Liquid. The networks are those of `publishers.py`.
"""

import pytest
import torch
import yaml
from publishers import Gumbel, Network
from zoo.test_configurations import photo

from smalti.zoo import open_tokenizer, read_published

SIZES = {"mult": (1, 2), "z": 8, "dim": 4}
LAYOUT = {"model": {"target": "taming.models.vqgan.VQModel", "params": {"embed_dim": 4, "ddconfig": {"ch": 32}}}}
LOSS = {"loss.discriminator.main.0.bias": torch.zeros(4)}
LIGHTNING = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "1.0.8", "callbacks": {}, "lr_schedulers": []}


def moving_average(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The codebook as a buffer with its averages, as VQ-Diffusion has it."""
    rest = {name: value for name, value in tensors.items() if not name.startswith("quantize.")}
    table = tensors["quantize.embedding.weight"]
    counts = {"quantize.cluster_size": torch.zeros(len(table)), "quantize.embedding_avg": table * 0}
    return rest | {"quantize.embedding": table} | counts


FILES = {
    "vqgan.ckpt of Chameleon, Anole and Liquid": (Network, "vqgan.ckpt", lambda t: {"state_dict": t}),
    "ithq_vqvae.pth of VQ-Diffusion": (Network, "ithq_vqvae.pth", lambda t: {"model": moving_average(t)}),
    "vqgan.gumbelf8-sber.model.ckpt of ruDALL-E": (
        Gumbel, "vqgan.gumbelf8-sber.model.ckpt", lambda t: {"state_dict": t},
    ),
    "vqgan_imagenet_f16_16384.ckpt as Lightning writes it": (
        Network, "vqgan_imagenet_f16_16384.ckpt", lambda t: {**LIGHTNING, "state_dict": t | LOSS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_it_loads_and_gives_the_same_tokens(name, tmp_path):
    kind, file, contents = FILES[name]
    theirs, image = kind(**SIZES), photo(16, 24)
    indices, z_q = theirs.quantize(theirs.encode(image))
    reconstruction = theirs.decode(z_q).clamp(-1, 1)
    torch.save(contents(theirs.tensors), tmp_path / file)
    if "Chameleon" in name:  # a YAML file of the same name lies beside it
        (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(LAYOUT))
    published = read_published(tmp_path / file)
    assert published.family == "taming"
    tokens = open_tokenizer(tmp_path).encode(image)
    assert torch.equal(tokens.indices[0], indices)
    assert len(indices.unique()) > 5
    assert (published.model.decode(tokens) - reconstruction).abs().max() < 2e-4


def test_without_its_yaml_chameleons_file_needs_the_family(tmp_path):
    theirs = Network(**SIZES)
    theirs.decode(theirs.quantize(theirs.encode(photo(16, 16)))[1])
    torch.save({"state_dict": theirs.tensors}, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError, match="family"):
        read_published(tmp_path / "vqgan.ckpt")
    assert read_published(tmp_path / "vqgan.ckpt", "taming").family == "taming"
