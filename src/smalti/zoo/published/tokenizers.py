"""Loads published tokenizers in one line: `load_published("vq_ds16_c2i.pt")`."""

from pathlib import Path
from typing import Any

from smalti.tokenizers import Tokenizer
from smalti.zoo.published import (
    chameleon,
    cosmos_di,
    dalle_dvae,
    diffusers_vq,
    emu3,
    emu35_ibq,
    ibq,
    infinity,
    janus,
    latent_diffusion,
    llamagen,
    maskbit,
    maskgit,
    movqgan,
    open_magvit2,
    rqvae,
    showo_magvit2,
    simvq,
    taming,
    titok,
    var,
    wetok,
)
from smalti.zoo.published.family import Family
from smalti.zoo.published.loading import Published, read_model

FAMILIES: dict[str, Family[Any]] = {
    "var": var.FAMILY,
    "infinity-bsq": infinity.FAMILY,
    "titok": titok.FAMILY,
    "llamagen": llamagen.FAMILY,
    "maskgit": maskgit.FAMILY,
    "maskbit": maskbit.FAMILY,
    "simvq": simvq.FAMILY,
    "movqgan": movqgan.FAMILY,
    "rqvae": rqvae.FAMILY,
    "showo-magvit2": showo_magvit2.FAMILY,
    "cosmos-di": cosmos_di.FAMILY,
    "dalle-dvae": dalle_dvae.FAMILY,
    "ibq": ibq.FAMILY,
    "open-magvit2": open_magvit2.FAMILY,
    "wetok": wetok.FAMILY,
    "emu3": emu3.FAMILY,
    "diffusers": diffusers_vq.FAMILY,
    "chameleon": chameleon.FAMILY,
    "janus": janus.FAMILY,
    "latent-diffusion": latent_diffusion.FAMILY,
    "taming": taming.FAMILY,
    "emu35-ibq": emu35_ibq.FAMILY,
}
"""Families by name. The first that recognises a checkpoint is taken, or a rival of it (`rivals.py`)."""


def load_published(path: str | Path, family: str | None = None, **options: Any) -> Tokenizer:
    """A tokenizer from its publisher's checkpoint, in eval mode, with weights in fp32.

    >>> tokenizer = load_published("vq_ds16_c2i.pt")  # doctest: +SKIP
    >>> tokens = tokenizer.encode(images)  # doctest: +SKIP

    Args:
        path: a file (.safetensors .pth .pt .ckpt .bin .jit .pkl), a folder with weights and config.json, or the folder
            of a pipeline.
        family: a key of `FAMILIES`; None: recognised by the tensor names.
        options: settings that cannot be inferred, by default the published values: `patch_nums`, `metric` ("euclidean",
            "cosine", "dot"), `image_range`, `num_heads` …, depending on the family.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, a file that needs code to be read, an unknown family or option, a checkpoint that
            fits two families, or tensors that do not fit. The message lists missing, surplus and differently shaped
            tensors, up to ten of each, the most similar names first.
    """
    return read_published(path, family, **options).model


def read_published(path: str | Path, family: str | None = None, **options: Any) -> Published[Tokenizer]:
    """Like `load_published`, with facts about the model's origin."""
    return read_model(path, FAMILIES, family, options)
