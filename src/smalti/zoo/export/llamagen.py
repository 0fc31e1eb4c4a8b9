"""LlamaGen's VQ model, as `vq_ds16_c2i.pt`: a checkpoint for `tokenizer.tokenizer_image.vq_model.VQModel`."""

from pathlib import Path

import torch

from smalti.tokenizers import Tokenizer
from smalti.zoo.export.format import Format, write_config
from smalti.zoo.export.vqgan import WITH_ATTENTION, codebook, published_tensors, sizes_of
from smalti.zoo.published.llamagen import NAMES

CODE = "FoundationVision/LlamaGen"
FIXED = {"ch": 128, "num_res_blocks": 2}
"""Sizes that `ModelArgs` has no fields for."""
RECENT_TOKENS = 65536
"""Length of the buffer of recent tokens that LlamaGen's training keeps in the checkpoint."""


def write(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """vq.pt, and config.json with the fields of `ModelArgs`."""
    sizes = sizes_of(tokenizer, CODE)
    table_KD, metric = codebook(tokenizer.quantizer, CODE, ("cosine", "euclidean"))
    last = (len(sizes.widths) - 1,)
    sizes.require(
        CODE,
        attention_levels=(last, last),
        mid=WITH_ATTENTION,
        projection=1,
        image_channels=3,
        norm_groups=32,
        norm="group",
        image_range=(-1.0, 1.0),
    )
    own = {"ch": sizes.stem_width, "num_res_blocks": sizes.num_res_blocks}
    config = {
        "codebook_size": tokenizer.vocab_size,
        "codebook_embed_dim": sizes.embedding_dim,
        "codebook_l2_norm": metric == "cosine",
        "encoder_ch_mult": sizes.ch_mult,
        "decoder_ch_mult": sizes.ch_mult,
        "z_channels": sizes.latent_channels,
    }
    state = published_tensors(tokenizer, {"quantizer.embedding.weight": table_KD}, NAMES)
    state["quantize.codebook_used"] = torch.zeros(RECENT_TOKENS)
    torch.save({"model": state}, folder / "vq.pt")
    write_config(folder, config)
    notes = [f"The code of {CODE} takes images from -1 to 1."]
    if own != FIXED:
        notes.append(f"ModelArgs has no fields for these sizes: set {own} in Encoder and Decoder of vq_model.py.")
    return notes


FORMAT = Format(
    code=CODE,
    loading="vq = VQModel(ModelArgs(**json.load(open('OUT/config.json')))); "
    "vq.load_state_dict(torch.load('OUT/vq.pt')['model'])",
    write=write,
)
