"""The `VQModel` of diffusers: a folder for `VQModel.from_pretrained`."""

from pathlib import Path

from safetensors.torch import save_file

from smalti.tokenizers import Tokenizer
from smalti.zoo.export.format import Format, write_config
from smalti.zoo.export.vqgan import WITH_ATTENTION, codebook, published_tensors, sizes_of
from smalti.zoo.published.diffusers_vq import table, with_linear_attention

CODE = "diffusers"


def write(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """diffusion_pytorch_model.safetensors, and config.json."""
    sizes = sizes_of(tokenizer, CODE)
    table_KD, _ = codebook(tokenizer.quantizer, CODE, ("euclidean",))
    attention = "attention" in sizes.mid
    mid = WITH_ATTENTION if attention else ("residual", "residual")
    sizes.require(CODE, stem_width=sizes.widths[0], mid=mid, projection=1)
    if sizes.norm == "spatial":  # its norms have 32 groups and take as many channels as the networks' latent
        sizes.require(CODE, latent_channels=sizes.embedding_dim, norm_groups=32)
    encoder, decoder = sizes.attention_levels
    down = [f"{'Attn' * (level in encoder)}DownEncoderBlock2D" for level in range(len(sizes.widths))]
    up = [f"{'Attn' * (level in decoder)}UpDecoderBlock2D" for level in reversed(range(len(sizes.widths)))]
    config = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(sizes.widths),
        "down_block_types": down,
        "in_channels": sizes.image_channels,
        "latent_channels": sizes.latent_channels,
        "layers_per_block": sizes.num_res_blocks,
        "lookup_from_codebook": True,
        "mid_block_add_attention": attention,
        "norm_num_groups": sizes.norm_groups,
        "norm_type": sizes.norm,
        "num_vq_embeddings": tokenizer.vocab_size,
        "out_channels": sizes.image_channels,
        "up_block_types": up,
        "vq_embed_dim": sizes.embedding_dim,
    }
    state = published_tensors(tokenizer, {"quantizer.embedding.weight": table_KD}, table(attention))
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(with_linear_attention(state), path, metadata={"format": "pt"})
    write_config(folder, config)
    low, high = sizes.image_range
    return [f"The model takes images from {low:g} to {high:g}."]


FORMAT = Format(code=CODE, loading="model = diffusers.VQModel.from_pretrained('OUT')", write=write)
