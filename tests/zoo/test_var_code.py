"""VAR's code runs on our tokenizers: the calls that its transformer, trainer and demos make, with their results.

The calls are those of VAR's repository (models/var.py, trainer.py, demo_zero_shot_edit.ipynb): argument names,
defaults and what comes back. They must work on a loaded VAR checkpoint and on any multi-scale tokenizer trained here.
"""

import pytest
import torch
import torch.nn.functional as F
from published import checkpoint, expected

from smalti.quantizers import MultiScaleQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import build, load_published

PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@pytest.fixture(scope="module")
def vae(golden):
    return load_published(checkpoint(golden, "var_vqvae"))


@pytest.fixture(scope="module")
def values(golden):
    return expected(golden, "var_vqvae")


@pytest.fixture(scope="module", params=[1, 4], ids=["one codebook", "a codebook a scale"])
def ours(request):
    torch.manual_seed(5)
    quantizer = MultiScaleQuantizer(32, 8, (1, 2, 3, 6), num_codebooks=request.param)
    model = SimpleVQVAE(vocab_size=32, embedding_dim=8, hidden_dim=16, num_stages=2, quantizer=quantizer)
    for parameter in model.quantizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def indices(values):
    return [values[f"indices.{k:02d}"] for k in range(len(PATCH_NUMS))]


def walk(vae, idx_Bl, patch_nums):
    """The loop of VAR's sampler with the tokens given: final f_hat and the maps that its transformer would see."""
    quant = vae.quantize
    batch = idx_Bl[0].shape[0]
    f_hat, maps = torch.zeros(batch, vae.Cvae, patch_nums[-1], patch_nums[-1]), []
    for si, pn in enumerate(patch_nums):
        h_BChw = quant.embedding(idx_Bl[si]).transpose_(1, 2).reshape(batch, vae.Cvae, pn, pn)
        f_hat, next_token_map = quant.get_next_autoregressive_input(si, len(patch_nums), f_hat, h_BChw)
        if si != len(patch_nums) - 1:
            maps.append(next_token_map.view(batch, vae.Cvae, -1).transpose(1, 2))
    return f_hat, torch.cat(maps, dim=1)


@torch.no_grad()
def test_attributes(vae):
    assert (vae.vocab_size, vae.Cvae) == (512, 32)
    assert vae.quantize.v_patch_nums == PATCH_NUMS
    assert vae.quantize.embedding.weight.shape == (512, 32)
    assert vae.quantize.beta == 0.25
    vae.quantize.prog_si = -1
    with pytest.raises(ValueError, match="progressive"):
        vae.quantize.prog_si = 3


@torch.no_grad()
def test_sampler_and_teacher_forcing_against_the_golden(vae, values):
    idx_Bl = indices(values)
    f_hat, maps = walk(vae, idx_Bl, PATCH_NUMS)
    assert (f_hat - values["f_hat"]).abs().max() < 1e-5
    assert (maps - values["var_input"]).abs().max() < 1e-5
    assert torch.equal(maps, vae.quantize.idxBl_to_var_input(gt_ms_idx_Bl=idx_Bl))
    image = vae.fhat_to_img(f_hat).add_(1).mul_(0.5)
    assert (image * 2 - 1 - values["reconstruction"]).abs().max() < 2e-4


@torch.no_grad()
def test_trainer_against_the_golden(vae, values):
    gt_idx_Bl = vae.img_to_idxBl(inp_img_no_grad=values["image"])
    assert [tuple(scale.shape) for scale in gt_idx_Bl] == [(2, pn * pn) for pn in PATCH_NUMS]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gt_idx_Bl, indices(values), strict=True))
    assert (vae.quantize.idxBl_to_var_input(gt_idx_Bl) - values["var_input"]).abs().max() < 1e-5
    again = vae.img_to_idxBl(values["image"], v_patch_nums=PATCH_NUMS)
    assert all(torch.equal(one, other) for one, other in zip(gt_idx_Bl, again, strict=True))


@torch.no_grad()
def test_progressive_images_against_the_golden(vae, values):
    image = values["image"][:1]
    images = vae.img_to_reconstructed_img(x=image, v_patch_nums=PATCH_NUMS, last_one=False)
    assert len(images) == len(PATCH_NUMS)
    for k in (0, 5, 9):
        assert (images[k] - values[f"progressive.{k:02d}"].float()).abs().max() < 2e-3


@torch.no_grad()
def test_lists_and_last_ones(ours):
    image = torch.rand(2, 3, 24, 24) * 2 - 1
    images = ours.img_to_reconstructed_img(image)
    idx_Bl = list(ours.img_to_idxBl(image))
    listed = ours.idxBl_to_img(ms_idx_Bl=idx_Bl, same_shape=True, last_one=False)
    assert len(listed) == len(images) == 4
    assert all(torch.equal(one, other) for one, other in zip(images, listed, strict=True))
    assert torch.equal(ours.img_to_reconstructed_img(image, last_one=True), images[-1])
    assert torch.equal(ours.idxBl_to_img(idx_Bl, True, True), images[-1])
    assert torch.equal(ours.idxBl_to_img(idx_Bl), images[-1])
    assert ours.idxBl_to_img(idx_Bl, same_shape=False, last_one=True).shape == image.shape


@torch.no_grad()
@pytest.mark.parametrize("which", ["vae", "ours"])
def test_embed_to_fhat(which, vae, ours):
    model = {"vae": vae, "ours": ours}[which]
    patch_nums, quant = model.quantize.v_patch_nums, model.quantize
    idx_Bl = [torch.randint(model.vocab_size, (2, pn * pn)) for pn in patch_nums]
    maps = [
        quant.embedding(i).transpose(1, 2).reshape(2, model.Cvae, pn, pn)
        for i, pn in zip(idx_Bl, patch_nums, strict=True)
    ]
    f_hats = quant.embed_to_fhat(ms_h_BChw=maps, all_to_max_scale=True, last_one=False)
    f_hat, _ = walk(model, idx_Bl, patch_nums)
    assert torch.equal(f_hats[-1], f_hat)
    assert torch.equal(quant.embed_to_fhat(maps, last_one=True), f_hat)
    growing = quant.embed_to_fhat(maps, all_to_max_scale=False)
    assert [tuple(f.shape[2:]) for f in growing] == [(pn, pn) for pn in patch_nums]
    # The definition, written out: enlarge what there is, add φ of the codes as they are
    by_hand = torch.zeros(2, model.Cvae, patch_nums[0], patch_nums[0])
    for k, h in enumerate(maps):
        by_hand = F.interpolate(by_hand, size=h.shape[2:], mode="bicubic") + model.quantizer.phi(k)(h)
        assert torch.allclose(growing[k], by_hand, atol=1e-5)
    if which == "ours":
        images = model.idxBl_to_img(idx_Bl, same_shape=False)
        assert [image.shape[2] for image in images] == [pn * model.stride for pn in patch_nums]


@torch.no_grad()
def test_a_tokenizer_of_ours_serves_the_same_calls(ours):
    image = torch.rand(2, 3, 24, 24) * 2 - 1
    idx_Bl = ours.img_to_idxBl(image)
    f_hat, maps = walk(ours, list(idx_Bl), ours.quantize.v_patch_nums)
    assert torch.equal(maps, ours.idxBl_to_var_input(list(idx_Bl)))
    assert torch.equal(ours.fhat_to_img(f_hat), ours.idxBl_to_img(idx_Bl))
    codebooks = ours.quantizer.get_codebook()
    for k, scale in enumerate(idx_Bl):
        assert torch.equal(ours.quantize.embedding(scale), (codebooks[k] if codebooks.dim() == 3 else codebooks)[scale])


def test_the_quantizer_is_a_module_of_the_same_parameters(ours):
    """VAR's train.py counts them, its trainer switches modes; saved keys stay those of the tokenizer."""
    keys = list(ours.state_dict())
    assert isinstance(ours.quantize, torch.nn.Module)
    assert {id(p) for p in ours.quantize.parameters()} == {id(p) for p in ours.quantizer.parameters()}
    assert sum(p.numel() for p in ours.quantize.parameters()) == sum(p.numel() for p in ours.quantizer.parameters())
    assert not ours.quantize.training
    assert list(ours.state_dict()) == keys
    assert all(key.startswith(("encoder.", "decoder.", "quantizer.")) for key in keys)


@torch.no_grad()
def test_mixtures_of_codes_need_one_codebook(ours):
    """VAR's `more_smooth`: probabilities (B, l, V) times the codebook, here as many images as scales."""
    weights = torch.rand(4, 9, 32).softmax(-1)
    if len(ours.quantizer.quantizers) == 1:
        mixed = weights @ ours.quantize.embedding.weight.unsqueeze(0)
        assert torch.allclose(mixed, weights @ ours.quantizer.get_codebook(), atol=1e-6)
        return
    assert not hasattr(ours.quantize.embedding, "weight")
    with pytest.raises(AttributeError, match="num_codebooks=1"):
        weights @ ours.quantize.embedding.weight.unsqueeze(0)


@torch.no_grad()
def test_tokens_of_another_image_size_find_their_codebook(ours):
    """An image twice as large as trained: its first scale has 2 x 2 tokens, as the second has of a trained one."""
    image = torch.rand(2, 3, 48, 48) * 2 - 1
    codebooks = ours.quantizer.get_codebook()
    latent = ours.encoder(image)
    for idx_Bl in (ours.img_to_idxBl(image), ours.quantize.f_to_idxBl_or_fhat(latent, to_fhat=False)):
        assert [scale.shape[1] for scale in idx_Bl] == [4, 16, 36, 144]
        for k, scale in enumerate(idx_Bl):
            expected = (codebooks[k] if codebooks.dim() == 3 else codebooks)[scale]
            assert torch.equal(ours.quantize.embedding(scale), expected)


@torch.no_grad()
def test_other_numbers_of_scales_as_var_takes_them(ours):
    image, sides = torch.rand(2, 3, 24, 24) * 2 - 1, (1, 2, 4, 5, 6)
    if len(ours.quantizer.quantizers) > 1:
        with pytest.raises(ValueError, match="grids: got 5 scales, expected 4"):
            ours.img_to_idxBl(image, v_patch_nums=sides)
        return
    idx_Bl = ours.img_to_idxBl(image, v_patch_nums=sides)
    assert [scale.shape[1] for scale in idx_Bl] == [1, 4, 16, 25, 36]
    images = ours.img_to_reconstructed_img(image, v_patch_nums=sides)
    assert torch.equal(ours.idxBl_to_img(list(idx_Bl)), images[-1])
    f_hats = ours.quantize.f_to_idxBl_or_fhat(ours.encoder(image), to_fhat=True, v_patch_nums=sides)
    maps = ours.quantize.code_maps([s.unflatten(1, (n, n)) for s, n in zip(idx_Bl, sides, strict=True)])
    for one, other in zip(f_hats, ours.quantize.embed_to_fhat(maps), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_images_that_are_not_square(ours, values, vae):
    image = torch.rand(1, 3, 24, 40) * 2 - 1
    idx_Bl = ours.img_to_idxBl(image, v_patch_nums=[(1, 1), (2, 3), [3, 5], (6, 10)])
    assert [scale.shape[1] for scale in idx_Bl] == [1, 6, 15, 60]
    assert ours.idxBl_to_img(idx_Bl).shape == image.shape
    assert ours.quantize.idxBl_to_var_input(idx_Bl).shape == (1, 6 + 15 + 60, 8)
    assert len(ours.img_to_reconstructed_img(image)) == 4
    wide = values["image"][:1, :, :128]
    grids = vae.encode(wide).grids
    assert grids[-1] == (8, 16)
    given = vae.img_to_idxBl(wide, v_patch_nums=list(grids))
    assert torch.equal(torch.cat(given, 1), vae.encode(wide).flatten())


def test_wrong_calls(ours):
    if len(ours.quantizer.quantizers) > 1:
        with pytest.raises(ValueError, match="idx_Bl: got 5 tokens"):
            ours.quantize.embedding(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="grids"):
        ours.img_to_idxBl(torch.zeros(1, 3, 24, 24), v_patch_nums=(1, 2, 3, 5))
    with pytest.raises(ValueError, match="SN"):
        ours.quantize.get_next_autoregressive_input(0, 5, torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 1, 1))
    with pytest.raises(ValueError, match="not square"):
        ours.quantize.idxBl_to_var_input([torch.zeros(1, n, dtype=torch.int64) for n in (1, 4, 9, 35)])
    single = build("simple")
    assert not hasattr(single, "quantize")
    assert single.Cvae == 64


@torch.no_grad()
def test_latents_and_embeddings_against_the_golden(vae, values):
    latent, idx_Bl = values["latent"], indices(values)
    found = vae.quantize.f_to_idxBl_or_fhat(f_BChw=latent, to_fhat=False, v_patch_nums=PATCH_NUMS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, idx_Bl, strict=True))
    f_hats = vae.quantize.f_to_idxBl_or_fhat(latent, to_fhat=True)
    assert len(f_hats) == len(PATCH_NUMS)
    assert (f_hats[-1] - values["f_hat"]).abs().max() < 1e-5
    maps = [
        vae.quantize.embedding(scale).transpose(1, 2).unflatten(2, (pn, pn))
        for scale, pn in zip(idx_Bl, PATCH_NUMS, strict=True)
    ]
    image = vae.embed_to_img(ms_h_BChw=maps, all_to_max_scale=True, last_one=True)
    assert (image - values["reconstruction"]).abs().max() < 2e-4
    first = [scale[:1] for scale in maps]
    images = vae.embed_to_img(first, all_to_max_scale=True)
    for k in (0, 5, 9):
        assert (images[k] - values[f"progressive.{k:02d}"].float()).abs().max() < 2e-3
