"""Chooses the quantizer of a tokenizer: a default one of given sizes, or the caller's own."""

from collections.abc import Sequence

from smalti.quantizers import DeadCodeRevival, EMAVectorQuantizer, KMeansInit, MultiScaleQuantizer, Quantizer


def chosen_quantizer(
    vocab_size: int,
    embedding_dim: int,
    patch_nums: Sequence[int] | None = None,
    num_codebooks: int | None = None,
    quantizer: Quantizer | None = None,
) -> Quantizer:
    """The quantizer of a tokenizer.

    Args:
        vocab_size: number of codes.
        embedding_dim: dimension of a code.
        patch_nums: sides of the token maps, coarse to fine; None: one map.
        num_codebooks: number of codebooks for several scales; 1: shared by all scales; None: one per scale.
        quantizer: the caller's own; None: the default one.

    Raises:
        ValueError: sizes that differ from the caller's quantizer; patch_nums or num_codebooks together with it;
            num_codebooks without patch_nums.
    """
    if quantizer is None:
        return default_quantizer(vocab_size, embedding_dim, patch_nums, num_codebooks)
    if patch_nums is not None or num_codebooks is not None:
        raise ValueError(
            f"patch_nums, num_codebooks: got {patch_nums}, {num_codebooks}, expected None with a quantizer of your own"
        )
    own = (quantizer.num_embeddings, quantizer.embedding_dim)
    if own != (vocab_size, embedding_dim):
        sizes = f"{vocab_size} of dimension {embedding_dim} (vocab_size, embedding_dim)"
        raise ValueError(f"quantizer: got {own[0]} codes of dimension {own[1]}, expected {sizes}")
    return quantizer


def default_quantizer(
    vocab_size: int, embedding_dim: int, patch_nums: Sequence[int] | None, num_codebooks: int | None = None
) -> Quantizer:
    """A codebook by moving average with short memory, initialised from data, with revival of dead codes.

    The commitment weight is large, and a multi-scale tokenizer has one codebook per scale: `benchmarks/quality.py`
    measured the best reconstructions with these settings.
    """
    codebook = EMAVectorQuantizer(
        vocab_size, embedding_dim, beta=1.0, decay=0.9, init=KMeansInit(), revival=DeadCodeRevival()
    )
    if patch_nums is None:
        if num_codebooks is not None:
            raise ValueError(f"num_codebooks: got {num_codebooks}, expected None without patch_nums (several scales)")
        return codebook
    count = len(patch_nums) if num_codebooks is None else num_codebooks
    return MultiScaleQuantizer(vocab_size, embedding_dim, patch_nums, 1.0, num_codebooks=count, quantizer=codebook)
