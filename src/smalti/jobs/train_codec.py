"""Train the codec of a tokenizer on its tokens, for `smalti encode --coding context`."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from smalti.codec import CodecTrainingConfig, coding_tables, make_codec, train_context_model, write_codec
from smalti.formats import check_replaceable, read_token_file
from smalti.formats.storage import Storage
from smalti.formats.token_codec import Grids
from smalti.formats.token_set import MANIFEST, read_manifest, read_rows
from smalti.tokenizers import Tokenizer
from smalti.zoo import open_tokenizer

LAST_STEPS = 0.1
"""Share of the steps over which the reported bits are averaged: a single step varies too much."""
Images = list[tuple[Grids, Int64[np.ndarray, " _"]]]


@dataclass(frozen=True)
class TrainCodecConfig:
    """Train a codec that predicts each token from its neighbours, for smalti encode --coding context."""

    tokens: str
    """Token data set from smalti tokenize, a token file, or a folder of token files."""
    out: Path
    """Codec file to write. smalti encode finds it by itself as codec.safetensors in the folder of the tokenizer."""
    run: str = ""
    """Tokenizer that made the tokens, named as for smalti encode; empty: the one in the token data set."""
    training: CodecTrainingConfig = field(default_factory=CodecTrainingConfig)
    """Training and model size."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class TrainCodecResult:
    """The trained codec."""

    out: Path
    """File of the codec."""
    fingerprint: str
    """Fingerprint of the codec."""
    images: int
    """Number of training images."""
    num_tokens: int
    """Number of training tokens."""
    bits_per_token: float
    """Mean bits per token in the last tenth of the steps."""


def train_codec(config: TrainCodecConfig, on_step: Callable[[int, float], None] | None = None) -> TrainCodecResult:
    """Train a codec and write it.

    Args:
        config: which tokens and output.
        on_step: called at every hundredth step with its number and its bits per token.

    Raises:
        FileNotFoundError: no such tokens or tokenizer, or no folder to write to.
        FileExistsError: the codec exists and `force` is off.
        ValueError: tokens of another tokenizer, damaged tokens, or a vocabulary size that codecs do not support.
    """
    check_replaceable(config.out, config.force)
    storage = Storage(config.tokens)
    is_set = not Path(config.tokens).is_file() and storage.exists(MANIFEST)
    if not config.run and not (is_set and storage.local):
        raise ValueError(f"run: got none, expected the tokenizer that made {config.tokens}")
    tokenizer = open_tokenizer(config.run or Path(config.tokens, "tokenizer"))
    images = _rows(storage, tokenizer) if is_set else _file_images(config.tokens, tokenizer)
    if not images:
        raise ValueError(f"tokens: no image in {config.tokens}")
    losses: list[Tensor] = []

    def keep(step: int, bits: Float[Tensor, ""]) -> None:
        losses.append(bits)
        if on_step is not None and (step % 100 == 0 or step == config.training.steps):
            on_step(step, float(bits))

    model = train_context_model(images, codebook_of(tokenizer), config.training, keep)
    usual_grids = Counter(grids for grids, _ in images).most_common(1)[0][0]
    codec = make_codec(model, tokenizer.fingerprint, usual_grids)
    write_codec(config.out, codec, config.force)
    last = losses[-max(1, int(LAST_STEPS * len(losses))) :]
    num_tokens = sum(len(indices) for _, indices in images)
    return TrainCodecResult(config.out, codec.fingerprint, len(images), num_tokens, sum(map(float, last)) / len(last))


def codebook_of(tokenizer: Tokenizer) -> Float[Tensor, "k d"]:
    """One vector per token: its code, or its codes of all levels, groups or scales if each has its own codebook."""
    codebook = tokenizer.quantizer.get_codebook().detach().float().cpu()
    return codebook.movedim(-2, 0).flatten(1)


def _rows(storage: Storage, tokenizer: Tokenizer) -> Images:
    """All rows of a token data set."""
    manifest = read_manifest(storage)
    if manifest.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"run: got tokenizer {tokenizer.fingerprint[:12]}…, expected {manifest.fingerprint[:12]}…, "
            f"which made {storage}"
        )
    rows = (row for shard in manifest.shards for row in read_rows(storage, manifest, shard))
    return [(row.grids, row.indices) for row in rows]


def _file_images(tokens: str, tokenizer: Tokenizer) -> Images:
    """All images of a token file, or of all token files in a folder."""
    tables = coding_tables(tokenizer)
    files = [read_token_file(path, tokenizer.fingerprint, tables) for path in _paths(Path(tokens))]
    return [(image.grids, image.indices) for file in files for image in file.images]


def _paths(tokens: Path) -> Iterator[Path]:
    if not tokens.exists():
        raise FileNotFoundError(f"tokens: {tokens} does not exist")
    yield from sorted(path for path in tokens.iterdir() if path.is_file()) if tokens.is_dir() else [tokens]
