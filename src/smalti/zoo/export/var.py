"""VAR's multi-scale VQVAE, as `vae_ch160v4096z32.pth`: a flat state dict for `models.VQVAE`.

VAR's code has one codebook for all scales. One codebook per scale cannot be written: joined in one table, each scale
would also find codes of the others.
"""

from pathlib import Path

import torch

from smalti.checks import expect
from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import Tokenizer
from smalti.zoo.export.format import Format, write_config
from smalti.zoo.export.vqgan import WITH_ATTENTION, codebook, published_tensors, sizes_of
from smalti.zoo.published.var import USAGE, names_to_write

CODE = "FoundationVision/VAR"
FIXED = {"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2}
"""Sizes that VAR's VQVAE has no arguments for."""


def write(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """vae.pth, and config.json with the arguments of `VQVAE`."""
    sizes = sizes_of(tokenizer, CODE)
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, MultiScaleQuantizer):
        raise ValueError(f"quantizer: got {type(quantizer).__name__}, expected MultiScaleQuantizer, as in {CODE}")
    number, scales = quantizer.num_codebooks, quantizer.patch_nums
    expect(number == 1, "num_codebooks", number, f"1: in the code of {CODE} all scales share one codebook")
    expect(len(scales) > 1, "patch_nums", scales, f"at least 2 scales, as the code of {CODE} needs")
    table_KD, metric = codebook(quantizer.part(0), CODE, ("euclidean", "znorm"))
    last = (len(sizes.widths) - 1,)
    sizes.require(
        CODE,
        latent_channels=sizes.embedding_dim,
        attention_levels=(last, last),
        mid=WITH_ATTENTION,
        image_channels=3,
        norm_groups=32,
        norm="group",
        image_range=(-1.0, 1.0),
    )
    expect(sizes.projection > 0, "projection", sizes.projection, f"1 or more, as in the code of {CODE}")
    usage = quantizer.scale_usage
    if usage is None:  # the codebook is too large for it
        usage = torch.zeros(len(scales), quantizer.num_embeddings)
    phis = dict(quantizer.phis.named_parameters("quantizer.phis"))
    tensors = {"quantizer.quantizers.0.embedding.weight": table_KD, USAGE: usage, **phis}
    own = {"ch_mult": sizes.ch_mult, "num_res_blocks": sizes.num_res_blocks}
    config = {
        "vocab_size": quantizer.num_embeddings,
        "z_channels": sizes.latent_channels,
        "ch": sizes.stem_width,
        "beta": quantizer.beta,
        "using_znorm": metric == "znorm",
        "quant_conv_ks": sizes.projection,
        "quant_resi": quantizer.phi_ratio,
        "share_quant_resi": quantizer.num_phi,
        "v_patch_nums": list(scales),
    }
    state = published_tensors(tokenizer, tensors, names_to_write(quantizer.num_phi), split=False)
    torch.save(state, folder / "vae.pth")
    write_config(folder, config)
    side = scales[-1] * tokenizer.stride
    notes = [f"The code of {CODE} takes images of {side}x{side} pixels, from -1 to 1."]
    if own != FIXED:
        notes.append(f"VQVAE has no arguments for these sizes: set {own} in `ddconfig` of models/vqvae.py.")
    return notes


FORMAT = Format(
    code=CODE,
    loading="vae = VQVAE(**json.load(open('OUT/config.json'))); vae.load_state_dict(torch.load('OUT/vae.pth'))",
    write=write,
)
