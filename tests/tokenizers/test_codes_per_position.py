"""Tokenizers whose quantizer makes several codes a position: residual levels, groups, and both inside a pyramid."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smalti.quantizers import GroupedQuantizer, MultiScaleQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, TiTok, Tokenizer, VARTokenizer


def levels(count: int = 3, dim: int = 4) -> ResidualQuantizer:
    return ResidualQuantizer([VectorQuantizer(20, dim) for _ in range(count)])


def simple(quantizer: Quantizer) -> Tokenizer:
    return SimpleVQVAE(quantizer.num_embeddings, quantizer.embedding_dim, 8, quantizer=quantizer)


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "levels": lambda: simple(levels()),
    "groups": lambda: simple(GroupedQuantizer([VectorQuantizer(20, 2) for _ in range(2)])),
    "groups of levels": lambda: simple(GroupedQuantizer([levels(2, 2) for _ in range(3)])),
    "scales of levels": lambda: simple(MultiScaleQuantizer(20, 4, (1, 2, 4), num_codebooks=3, quantizer=levels())),
    "TiTok": lambda: TiTok(
        levels(), {"width": 32, "layers": 1, "num_heads": 1}, image_size=32, num_latent_tokens=5, image_channels=3
    ),
}


@pytest.fixture(params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    torch.manual_seed(0)
    made = MAKERS[request.param]()
    for module in made.quantizer.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.3)
    return made.eval()


def picture(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_tokens_come_back_as_the_forward_pass_gives_them(tokenizer: Tokenizer, size: tuple[int, int]) -> None:
    image = picture(2, 3, *size)
    expected, tokens = tokenizer(image).reconstruction, tokenizer.encode(image)
    assert tokens.grids[0][2:] == tokenizer.quantizer.code_shape != ()
    assert torch.equal(tokenizer.decode(tokens), expected)
    steps = tokenizer.progressive(tokens)
    assert torch.equal(steps[-1], expected)
    if isinstance(tokenizer.quantizer, ResidualQuantizer):
        for n, step in enumerate(steps):
            first = replace(tokens, indices=(tokens.indices[0][..., : n + 1],))
            assert torch.equal(tokenizer.decode(first), step)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "TiTok"])
def test_lists_come_back_as_the_forward_pass_gives_them(name: str, size: tuple[int, int]) -> None:
    tokenizer, image = MAKERS[name]().eval(), picture(2, 3, *size)
    expected, tokens, listed = tokenizer(image).reconstruction, tokenizer.encode(image), tokenizer.img_to_idxBl(image)
    assert torch.equal(tokenizer.idxBl_to_img(listed), expected)
    assert torch.equal(torch.cat(list(listed), dim=1), tokens.flatten())
    for grids in (tokens.grids, [grid[:2] for grid in tokens.grids]):
        again = tokenizer.idxBl_to_img(list(listed), grids=grids)
        assert torch.equal(again[:, :, : size[0], : size[1]], expected)
    if size[0] == size[1]:
        assert torch.equal(tokenizer.idxBl_to_img(list(listed))[:, :, : size[0], : size[1]], expected)
    codes = tokenizer.idxBl_to_var_input(listed)
    positions = [grid[0] * grid[1] for grid in tokens.grids]
    assert codes.shape[1] == sum(positions[1:] if len(positions) > 1 else positions)


def test_another_number_of_codes_is_refused(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(picture(1, 3, 16, 16))
    more = tuple(torch.cat([scale, scale], dim=-1) for scale in tokens.indices)
    for wrong in (more, tuple(scale.flatten(3)[..., 0] for scale in tokens.indices)):
        with pytest.raises(ValueError, match=r"grid|indices"):
            tokenizer.decode(replace(tokens, indices=wrong))
    if isinstance(tokenizer, VARTokenizer):
        with pytest.raises(ValueError, match=r"not square|grids"):
            tokenizer.idxBl_to_img([torch.zeros(1, 7, dtype=torch.int64)] * len(tokens.indices))


def test_vars_code_is_told_that_it_knows_one_code_a_position() -> None:
    tokenizer = MAKERS["scales of levels"]()
    with pytest.raises(ValueError, match=r"embedding: got \(3,\) codes per position, expected one"):
        _ = tokenizer.quantize.embedding
    plain = [scale.flatten(1) for scale in tokenizer.encode(picture(1, 3, 16, 16)).indices]
    assert torch.equal(tokenizer.quantize.idxBl_to_var_input(plain), tokenizer.idxBl_to_var_input(plain))
