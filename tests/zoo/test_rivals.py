"""Checkpoints that fit two families: told apart by what lies in and beside the file, or the user is asked."""

import logging

import pytest
import torch
import yaml
from published import checkpoint, expected

from smalti.zoo import load_published, read_published

BARE = {
    "taming_vqgan_f16": ("taming", "emu35-ibq"),
    "emu35_ibq": ("taming", "emu35-ibq"),
    "wetok": ("open-magvit2", "wetok"),
}
"""Goldens and the families that they fit without what tells."""


@pytest.fixture(params=BARE)
def bare(request, golden, tmp_path):
    """The weights of a golden alone, and the two families."""
    tree = torch.load(checkpoint(golden, request.param), weights_only=True)
    tensors = tree.get("state_dict", tree)
    raw = {name: tensor for name, tensor in tensors.items() if not name.startswith(("loss.", "model_ema."))}
    torch.save(raw, tmp_path / "model.pt")
    return tmp_path / "model.pt", BARE[request.param], expected(golden, request.param)["image"]


@torch.no_grad()
def test_a_bare_file_is_not_guessed(bare):
    file, families, image = bare
    with pytest.raises(ValueError, match=r"family: .*give") as caught:
        load_published(file)
    assert all(f"family='{family}'" in str(caught.value) for family in families)
    first, second = (load_published(file, family=family).encode(image).indices[0] for family in families)
    assert first.shape != second.shape or not torch.equal(first, second)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"ddconfig": {"ch": 32}, "n_embed": 512}, "emu35-ibq"),
        ({"model": {"target": "taming.models.vqgan.VQModel", "params": {"ddconfig": {"ch": 32}}}}, "taming"),
    ],
)
def test_config_yaml_tells(config, family, golden, tmp_path):
    torch.save(torch.load(checkpoint(golden, "emu35_ibq"), weights_only=True), tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    published = read_published(tmp_path)
    assert published.family == family
    assert "config.yaml" in published.why
    (tmp_path / "config.yaml").write_text("[: no YAML")
    with pytest.raises(ValueError, match="family"):
        read_published(tmp_path)


def test_what_was_found_and_assumed_is_logged(golden, caplog):
    with caplog.at_level(logging.INFO, logger="smalti.zoo.published.loading"):
        published = read_published(checkpoint(golden, "wetok"))
    assert published.assumed == {"bits_per_group": 8, "image_range": (-1.0, 1.0), "norm_groups": 32}
    for word in ("family wetok", "discriminator", "256 codes", "stride 4", "bits_per_group=8", "licence: "):
        assert word in caplog.text


def test_underscores_are_hyphens(golden):
    assert read_published(checkpoint(golden, "wetok"), family="open_magvit2").family == "open-magvit2"
