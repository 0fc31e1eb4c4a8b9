"""Image tokens as ids of a language model's vocabulary, and back.

    0 … offset - 1            the text vocabulary
    offset … offset + K - 1   the codes of the tokenizer
    then                      begin and end of an image; if asked for, end of a row and end of a scale; one id per
                              image size, if there are several

An image is one sequence: begin, its size, the tokens of all scales from coarse to fine in raster order, end. Chameleon,
Emu3 and Lumina-mGPT write images this way, each with separators of its own.
语言模型词表中的图像词元：起始、（尺寸、）由粗到细的各尺度词元、结束；可选行与尺度的结束标记。
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, final

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from smalti.checks import at_least, expect
from smalti.tokenizers.base import Tokenizer
from smalti.tokenizers.tokens import Grids, Tokens


@final
@dataclass(frozen=True)
class ImageVocabulary:
    """Which ids stand for image tokens, and how an image is written as ids."""

    vocab_size: int
    """Number of codes K of the tokenizer."""
    offset: int
    """Size of the text vocabulary; the id of code 0."""
    sizes: tuple[tuple[int, int], ...]
    """Image sizes (height, width) that can be written."""
    grids: tuple[Grids, ...]
    """The token grids of each size, coarse to fine."""
    rows: bool = False
    """End every row with an id of its own."""
    scales: bool = False
    """End every scale with an id of its own."""
    fingerprint: str = ""
    """Of the tokenizer whose tokens these are; "" accepts those of any tokenizer with K codes."""

    def __post_init__(self) -> None:
        at_least(1, vocab_size=self.vocab_size)
        at_least(0, offset=self.offset)
        expect(
            len(set(self.sizes)) == len(self.grids) > 0, "sizes", self.sizes, "different sizes, one per entry of grids"
        )

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, offset: int, sizes: Sequence[Sequence[int]], rows: bool = False, scales: bool = False
    ) -> "ImageVocabulary":
        """The vocabulary of a tokenizer in eval mode, for images of these sizes (height, width)."""
        reference = next(tokenizer.parameters())
        grids = []
        for height, width in sizes:
            blank = torch.zeros(1, tokenizer.image_channels, height, width, device=reference.device)
            grids.append(tokenizer.encode(blank).grids)
        pairs = tuple((int(height), int(width)) for height, width in sizes)
        return cls(tokenizer.vocab_size, offset, pairs, tuple(grids), rows, scales, tokenizer.fingerprint)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ImageVocabulary":
        """From what `config` gave, as it comes back from JSON."""
        sizes = tuple((int(height), int(width)) for height, width in config["sizes"])
        grids = tuple(tuple(tuple(grid) for grid in each) for each in config["grids"])
        return cls(**{**config, "sizes": sizes, "grids": grids})

    def config(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    # ---- ids ----------------------------------------------------------------------------------------------------

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Name → id of all that are no codes: begin, end, row, scale, and "HEIGHTxWIDTH" per size of several."""
        names = ["begin", "end", *["row"] * self.rows, *["scale"] * self.scales]
        names += [f"{height}x{width}" for height, width in self.sizes] if len(self.sizes) > 1 else []
        return {name: self.offset + self.vocab_size + k for k, name in enumerate(names)}

    @property
    def num_ids(self) -> int:
        """Ids in all, text included: the size of the language model's embedding."""
        return self.offset + self.vocab_size + len(self.special_ids)

    def length(self, size: tuple[int, int]) -> int:
        """Ids of one image of that size."""
        return len(self._template(self._number(size)))

    # ---- tokens to ids to tokens --------------------------------------------------------------------------------

    def encode(self, tokens: Tokens) -> Int64[Tensor, "b l"]:
        """Ids (B, L) of images, begin and end included.

        Raises:
            ValueError: tokens of another tokenizer, image size or grids.
        """
        other = bool(self.fingerprint and tokens.fingerprint and tokens.fingerprint != self.fingerprint)
        expect(not other, "tokens", f"those of the model {tokens.fingerprint[:12]}…", f"of {self.fingerprint[:12]}…")
        expect(
            tokens.vocab_size == self.vocab_size, "tokens", f"a vocabulary of {tokens.vocab_size}", str(self.vocab_size)
        )
        number = self._number(tokens.image_size)
        expect(tokens.grids == self.grids[number], "tokens", f"grids {tokens.grids}", str(self.grids[number]))
        sequence = tokens.flatten()
        template = self._template(number).to(sequence.device)
        ids = template.repeat(len(tokens), 1)
        ids[:, template < 0] = sequence + self.offset
        return ids

    def decode(self, ids: Shaped[Tensor, "b l"], image_dtype: torch.dtype = torch.uint8) -> Tokens:
        """Tokens of images of one size from their ids (B, L): the inverse of `encode`.

        Args:
            ids: one image per row, from begin to end; `spans` finds them in a longer sequence.
            image_dtype: what decoding the tokens gives, see `Tokens`.

        Raises:
            ValueError: ids that are not an image; the message names the first position that does not fit.
        """
        number = self._size_of(ids)
        template = self._template(number).to(ids.device)
        expect(
            ids.shape[1] == len(template),
            "ids",
            f"{ids.shape[1]} per image",
            f"{len(template)} for {self.sizes[number]}",
        )
        is_code = (ids >= self.offset) & (ids < self.offset + self.vocab_size)
        fits = torch.where(template < 0, is_code, ids == template)
        if not fits.all():
            row, place = (int(n) for n in (~fits).nonzero()[0])
            wanted = int(template[place])
            expected = f"a code, {self.offset} to {self.offset + self.vocab_size - 1}" if wanted < 0 else str(wanted)
            raise ValueError(f"ids: got {int(ids[row, place])} at position {place} of image {row}, expected {expected}")
        sequence = ids[:, template < 0] - self.offset
        grids, starts = self.grids[number], [0]
        for grid in grids:
            starts.append(starts[-1] + prod(grid))
        indices = tuple(
            sequence[:, a:b].reshape(-1, *grid) for (a, b), grid in zip(pairwise(starts), grids, strict=True)
        )
        return Tokens(indices, self.sizes[number], self.vocab_size, image_dtype, self.fingerprint)

    def spans(self, ids: Sequence[int]) -> list[slice]:
        """Where images lie in a sequence of text and images, begin and end included.

        Raises:
            ValueError: a begin without an end, or an end without a begin.
        """
        begin, end = self.special_ids["begin"], self.special_ids["end"]
        found, start = [], None
        for place, each in enumerate(ids):
            if each in (begin, end):
                expect(
                    (each == begin) == (start is None), "ids", f"{each} at position {place}", "begin and end in turns"
                )
                if start is not None:
                    found.append(slice(start, place + 1))
                start = place if each == begin else None
        expect(start is None, "ids", f"no end for the image that begins at position {start}", "one")
        return found

    def allowed(self, ids: Sequence[int]) -> list[int]:
        """The ids that may follow this sequence of text and images, so that every image that is begun can be decoded.

        For `generate` of the package transformers: `prefix_allowed_tokens_fn=lambda _, ids: allowed(ids.tolist())`.

        Raises:
            ValueError: an image of none of the sizes.
        """
        begin, end = self.special_ids["begin"], self.special_ids["end"]
        place = next((n for n, each in enumerate(reversed(ids), 1) if each in (begin, end)), 0)
        if place == 0 or ids[-place] == end:
            return [*range(self.offset), begin]
        if place == 1 and len(self.sizes) > 1:
            return list(self._size_ids)
        wanted = int(self._template(self._size_of(torch.tensor([list(ids[-place:])])))[place])
        return list(range(self.offset, self.offset + self.vocab_size)) if wanted < 0 else [wanted]

    # ---- parts --------------------------------------------------------------------------------------------------

    def _number(self, size: tuple[int, int]) -> int:
        expect(size in self.sizes, "image size", size, f"one of {self.sizes}")
        return self.sizes.index(size)

    @property
    def _size_ids(self) -> list[int]:
        """The ids of the sizes, of which there are several."""
        return [self.special_ids[f"{height}x{width}"] for height, width in self.sizes]

    def _size_of(self, ids: Tensor) -> int:
        """Number of the image size, told by the second id where there are several."""
        expect(ids.dim() == 2 and ids.dtype == torch.int64, "ids", f"{ids.dtype} {tuple(ids.shape)}", "int64 (B, L)")
        if len(self.sizes) == 1:
            return 0
        words = self._size_ids
        second = int(ids[0, 1]) if ids.numel() and ids.shape[1] > 1 else -1
        expect(second in words, "ids", f"{second} at position 1", f"an image size, one of {words}")
        return words.index(second)

    def _template(self, number: int) -> Int64[Tensor, " l"]:
        """The ids of an image of that size, -1 where a code stands."""
        special = self.special_ids
        size = [special[f"{self.sizes[number][0]}x{self.sizes[number][1]}"]] if len(self.sizes) > 1 else []
        words = [special["begin"], *size]
        for height, *rest in self.grids[number]:
            row = [-1] * prod(rest) + ([special["row"]] if self.rows else [])
            words += row * height + ([special["scale"]] if self.scales else [])
        return torch.tensor([*words, special["end"]])


def resize_embeddings(model: nn.Module, tokenizer: Tokenizer, vocabulary: ImageVocabulary) -> None:
    """Add the ids of images to a language model of the package transformers; their embeddings start from the codebook.

    A random projection brings the codes to the model's width; scale and shift give them the mean and the standard
    deviation of the text embeddings, so codes that are near each other start as embeddings that are near each other.
    Special ids start as the model's own `resize_token_embeddings` has them. Untied output weights get the same rows.

    Args:
        model: with `get_input_embeddings` and `resize_token_embeddings`; changed in place.
        tokenizer: whose codebook it is; one that can list its codes.
        vocabulary: which ids; `offset` is the present size of the model's embedding, or less.
    """
    old = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    mean, spread = old.mean(dim=0), old.std()
    model.resize_token_embeddings(vocabulary.num_ids)  # type: ignore[operator]
    codebook = tokenizer.quantizer.get_codebook().detach().float()
    codes_KD = codebook.reshape(-1, *codebook.shape[-2:])[0].to(old.device)
    codes_KD = (codes_KD - codes_KD.mean(dim=0)) / codes_KD.std().clamp_min(1e-12)
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(codes_KD.shape[1], len(mean), generator=generator) / codes_KD.shape[1] ** 0.5
    rows = mean + spread * (codes_KD @ projection.to(old.device))
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):  # type: ignore[operator]
        if table is not None:
            with torch.no_grad():
                table.weight[vocabulary.offset : vocabulary.offset + vocabulary.vocab_size] = rows.to(
                    table.weight.dtype
                )
