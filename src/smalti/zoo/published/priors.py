"""Loads published priors in one line, like published tokenizers.

    tokenizer = load_published("vae_ch160v4096z32.pth")
    prior = load_published_prior("var_d16.pth", tokenizer)

Tokenizer and prior must have the same scales and vocabulary; otherwise nothing is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.priors import Prior
from smalti.tokenizers import Tokenizer
from smalti.zoo.published import llamagen_prior, var_prior
from smalti.zoo.published.family import Family
from smalti.zoo.published.loading import read_model

PRIOR_FAMILIES: dict[str, Family[Any]] = {"var": var_prior.FAMILY, "llamagen": llamagen_prior.FAMILY}
"""Families by name."""


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """What the file of a published prior may not tell, as options of the commands that open one."""

    grid: tuple[int, int] | None = None
    """Height and width in tokens of a LlamaGen prior: [16, 16] if it was trained at 256 pixels, [24, 24] at 384; null:
    as in the file."""
    num_heads: int | None = None
    """Number of attention heads of a published prior, if the tensors do not show it; null: as published."""
    patch_nums: tuple[int, ...] | None = None
    """Side lengths of the scales of a VAR prior, if its table of levels is missing; null: those of the tokenizer."""

    def prior_options(self) -> dict[str, Any]:
        """The options that are set."""
        options = {"grid": self.grid, "num_heads": self.num_heads, "patch_nums": self.patch_nums}
        return {name: value for name, value in options.items() if value is not None}


def load_published_prior(path: str | Path, tokenizer: Tokenizer, family: str | None = None, **options: Any) -> Prior:
    """A prior from its publisher's checkpoint, in eval mode, with weights in fp32.

    >>> prior = load_published_prior("var_d16.pth", tokenizer)  # doctest: +SKIP
    >>> tokens = prior.sample(torch.tensor([207]))  # doctest: +SKIP

    Args:
        path: a .pth .pt .ckpt .bin or .safetensors file.
        tokenizer: the tokenizer that the prior was trained with.
        family: a key of `PRIOR_FAMILIES`; None: recognised by the tensor names.
        options: settings that the file does not contain: `grid` (LlamaGen, required), `num_heads`, `patch_nums` (VAR,
            if its table of levels is missing).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no family fits, an option is missing, the tokenizer has another vocabulary or other scales, or
            tensors do not fit.
    """
    prior: Prior = read_model(path, PRIOR_FAMILIES, family, {"tokenizer": tokenizer, **options}).model
    return prior
