"""VAR's interface: img_to_idxBl, idxBl_to_img, idxBl_to_var_input lose nothing, square or not, and refuse nonsense."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import SimpleVQVAE

VAR_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@cache
def model(patch_nums: tuple[int, ...] | None) -> SimpleVQVAE:
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(40, 6, 16, patch_nums=patch_nums)
    for codebook in [tokenizer.quantizer] if patch_nums is None else tokenizer.quantizer.quantizers:
        torch.nn.init.normal_(codebook.embedding.weight, std=0.3)
    return tokenizer.eval()


def picture(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_var_scales() -> None:
    """With VAR's patch_nums and a 16 x 16 latent: 680 tokens, and a teacher-forcing input of L - l_1 = 679 rows."""
    tokenizer, image = model(VAR_PATCH_NUMS), picture(2, 3, 64, 64)
    indices = tokenizer.img_to_idxBl(image)
    assert isinstance(indices, list)
    assert [tuple(scale.shape) for scale in indices] == [(2, side * side) for side in VAR_PATCH_NUMS]
    assert all(scale.dtype == torch.int64 for scale in indices)
    rows = tokenizer.idxBl_to_var_input(indices)
    assert rows.shape == (2, 679, 6)
    assert torch.equal(rows, tokenizer.quantizer.var_input(tokenizer.encode(image).indices))
    assert not rows.requires_grad


def test_bytes_are_the_image_that_they_mean() -> None:
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    tokenizer = model((1, 2, 4))
    for scale, same in zip(tokenizer.img_to_idxBl(image), tokenizer.img_to_idxBl(image / 127.5 - 1), strict=True):
        assert torch.equal(scale, same)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("patch_nums", ["124", [1.5, 4], [1, (2, 3, 4)], 4])
def test_scales_of_another_type_are_refused(patch_nums: object) -> None:
    with pytest.raises(ValueError, match=r"^v_patch_nums: got "):
        model((1, 2, 4)).img_to_idxBl(picture(1, 3, 16, 16), patch_nums)


@pytest.mark.usefixtures("unchecked")
def test_images_that_are_no_tensors_are_refused() -> None:
    image = picture(1, 3, 16, 16).numpy()
    tokenizer = model(None)
    for call in (tokenizer, tokenizer.encode, tokenizer.img_to_idxBl):
        with pytest.raises(ValueError, match=r"^image: got a ndarray, expected a Tensor"):
            call(image)


@settings(max_examples=12)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), patch_nums=st.sampled_from([None, (4,), (1, 2, 4), (2, 3, 5)])
)
def test_nothing_is_lost(height: int, width: int, patch_nums: tuple[int, ...] | None) -> None:
    tokenizer, image = model(patch_nums), picture(2, 3, height, width)
    tokens, indices = tokenizer.encode(image), tokenizer.img_to_idxBl(image)
    assert torch.equal(torch.cat(list(indices), dim=1), tokens.flatten())
    with torch.no_grad():
        reconstruction = tokenizer(image).reconstruction
    assert torch.equal(tokenizer.idxBl_to_img(indices), reconstruction)
    rows = tokenizer.idxBl_to_var_input(indices)
    first = 0 if len(indices) == 1 else indices[0].shape[1]
    assert rows.shape == (2, tokens.num_tokens - first, 6)
    assert torch.equal(rows, tokenizer.idxBl_to_var_input(list(indices), tokens.grids))


def test_a_plain_list_of_square_scales_needs_no_grids() -> None:
    tokenizer, image = model((1, 2, 4)), picture(2, 3, 16, 16)
    plain = [scale.clone() for scale in tokenizer.img_to_idxBl(image)]
    assert type(plain) is list
    assert torch.equal(tokenizer.idxBl_to_img(plain), tokenizer(image).reconstruction)
    assert torch.equal(tokenizer.idxBl_to_img(tuple(plain)), tokenizer(image).reconstruction)
    with_grids = tokenizer.idxBl_to_img(plain, grids=((1, 1), (2, 2), (4, 4)))
    assert torch.equal(with_grids, tokenizer(image).reconstruction)
    assert torch.equal(tokenizer.idxBl_to_img(plain, grids=[[1, 1], [2, 2], [4, 4]]), with_grids)


def test_a_plain_list_of_other_scales_needs_grids() -> None:
    tokenizer, image = model((1, 2, 4)), picture(1, 3, 8, 24)
    plain, grids = list(tokenizer.img_to_idxBl(image)), tokenizer.encode(image).grids
    assert grids == ((1, 2), (1, 3), (2, 6))
    with pytest.raises(ValueError, match="grids"):
        tokenizer.idxBl_to_img(plain)
    assert torch.equal(tokenizer.idxBl_to_img(plain, grids=grids), tokenizer(image).reconstruction)
    for wrong in (
        ((1, 2), (1, 3)),
        ((1, 2), (1, 3), (3, 4), (1, 1)),
        ((1, 2), (3, 1), (2, 5)),
        ((1, 1), (2, 2), (2, 6)),
    ):
        with pytest.raises(ValueError, match="grids"):
            tokenizer.idxBl_to_img(plain, grids=wrong)


def test_changing_the_list_changes_the_picture() -> None:
    """What img_to_idxBl returns is an ordinary list: what is put into it counts."""
    tokenizer, image = model((1, 2, 4)), picture(1, 3, 13, 22)
    indices = tokenizer.img_to_idxBl(image)
    indices[0] = (indices[0] + 1) % 40
    changed = tokenizer.idxBl_to_img(indices)
    assert changed.shape == image.shape
    assert not torch.equal(changed, tokenizer(image).reconstruction)


def test_a_single_scale_gives_the_code_vectors_in_raster_order() -> None:
    tokenizer, image = model(None), picture(2, 3, 10, 18)
    (indices,) = tokenizer.img_to_idxBl(image)
    rows = tokenizer.idxBl_to_var_input([indices], grids=((3, 5),))
    assert torch.equal(rows, tokenizer.quantizer.get_codebook()[indices])


ROW = torch.zeros(2, 1, dtype=torch.int64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("reader", ["idxBl_to_img", "idxBl_to_var_input"])
@pytest.mark.parametrize(
    ("indices", "named"),
    [
        ([], "ms_idx_Bl"),
        ([ROW, ROW.expand(2, 4)], "2 scales"),
        ([ROW, ROW.expand(2, 4), ROW.expand(2, 16) - 1], "-1"),
        ([ROW + 40, ROW.expand(2, 4), ROW.expand(2, 16)], "40"),
        ([ROW, ROW.expand(2, 4)[:1], ROW.expand(2, 16)], r"\(1, 4\)"),
        ([ROW, ROW[:, :0], ROW.expand(2, 16)], r"\(2, 0\)"),
        ([ROW, ROW.expand(2, 5), ROW.expand(2, 16)], "5"),
        ([ROW.float(), ROW.expand(2, 4).float(), ROW.expand(2, 16).float()], "float32"),
        ([ROW[:, :, None], ROW.expand(2, 4)[..., None], ROW.expand(2, 16)[..., None]], r"\(2, 1, 1\)"),
    ],
)
def test_lists_that_are_no_tokens_are_refused(reader: str, indices: list[Tensor], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        getattr(model((1, 2, 4)), reader)(indices)


def test_the_golden_input_of_a_whole_tokenizer(golden: Path) -> None:
    """VAR's quantizer inside a tokenizer: its indices, given as a plain list, make VAR's teacher-forcing input."""
    from safetensors.torch import load_file

    folder = golden / "var_vqvae"
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}")
    expected, weights = (
        load_file(folder / "expected.safetensors"),
        torch.load(next(folder.glob("*.pth")), weights_only=True),
    )
    quantizer = MultiScaleQuantizer(512, 32, VAR_PATCH_NUMS)
    tokenizer = SimpleVQVAE(512, 32, 16, num_stages=4, quantizer=quantizer).eval()
    with torch.no_grad():
        tokenizer.quantizer.quantizers[0].embedding.weight.copy_(weights["quantize.embedding.weight"])
        for k, phi in enumerate(tokenizer.quantizer.phis):
            phi.conv.weight.copy_(weights[f"quantize.quant_resi.qresi_ls.{k}.weight"])
            phi.conv.bias.copy_(weights[f"quantize.quant_resi.qresi_ls.{k}.bias"])
    indices = [expected[f"indices.{k:02d}"] for k in range(10)]
    rows = tokenizer.idxBl_to_var_input(indices)
    torch.testing.assert_close(rows, expected["var_input"], atol=2e-4, rtol=0)
