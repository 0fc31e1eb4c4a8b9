"""taming-transformers' VQGAN: a checkpoint and config.yaml for `taming.models.vqgan.VQModel`.

taming's Gumbel model cannot be written: its code draws noise when it encodes, so tokens would differ.
"""

from pathlib import Path

import torch
import yaml

from smalti.tokenizers import Tokenizer
from smalti.zoo.export.format import Format
from smalti.zoo.export.vqgan import WITH_ATTENTION, codebook, published_tensors, sizes_of
from smalti.zoo.published.vqgan_names import taming_table

CODE = "CompVis/taming-transformers"
RESOLUTION = 256
"""Image side that the attention's resolutions in the config refer to; the model takes any size."""


def write(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """last.ckpt, and config.yaml without a loss, so that `load_state_dict` is strict."""
    sizes = sizes_of(tokenizer, CODE)
    table_KD, _ = codebook(tokenizer.quantizer, CODE, ("euclidean",))
    levels = sizes.attention_levels[0]
    sizes.require(
        CODE,
        attention_levels=(levels, levels),
        mid=WITH_ATTENTION,
        projection=1,
        norm_groups=32,
        norm="group",
        image_range=(-1.0, 1.0),
    )
    resolution = max(RESOLUTION, tokenizer.stride)
    ddconfig = {
        "double_z": False,
        "z_channels": sizes.latent_channels,
        "resolution": resolution,
        "in_channels": sizes.image_channels,
        "out_ch": sizes.image_channels,
        "ch": sizes.stem_width,
        "ch_mult": sizes.ch_mult,
        "num_res_blocks": sizes.num_res_blocks,
        "attn_resolutions": [resolution // 2**level for level in levels],
        "dropout": 0.0,
    }
    params = {
        "embed_dim": sizes.embedding_dim,
        "n_embed": tokenizer.vocab_size,
        "ddconfig": ddconfig,
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
    }
    config = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    state = published_tensors(tokenizer, {"quantizer.embedding.weight": table_KD}, taming_table())
    torch.save({"state_dict": state}, folder / "last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return [f"The code of {CODE} takes images from -1 to 1."]


FORMAT = Format(
    code=CODE,
    loading="model = instantiate_from_config(OmegaConf.load('OUT/config.yaml').model); "
    "model.load_state_dict(torch.load('OUT/last.ckpt')['state_dict'])",
    write=write,
)
