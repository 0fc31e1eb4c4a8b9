"""The trainable families: every row of the zoo builds, small versions learn, save, and keep their promises."""

import pytest
import torch

from smalti.blocks.resampling import depth_to_space
from smalti.quantizers import LookupFreeQuantizer, VectorQuantizer
from smalti.tokenizers import VQGAN, TiTok, Tokens
from smalti.zoo import MODELS, build, load

SMALL_PYRAMID = {"encoder": {"widths": [32, 32, 64], "num_res_blocks": 1, "latent_channels": 8}}
SMALL_VIT = {"width": 64, "layers": 1, "num_heads": 2, "patch_size": 4}
SMALL_TITOK = {"encoder": SMALL_VIT, "image_size": 16, "num_latent_tokens": 5}
CODES = {"num_embeddings": 32, "init": None, "revival": None}

SMALL = {
    "vqgan-f8": {**SMALL_PYRAMID, "quantizer": CODES},
    "vqgan-f16": {**SMALL_PYRAMID, "quantizer": {**CODES, "embedding_dim": 8}},
    "var-f16": {
        **SMALL_PYRAMID,
        "quantizer": {
            "num_embeddings": 32, "embedding_dim": 8, "patch_nums": [1, 2, 4],
            "quantizer": {**CODES, "embedding_dim": 8},
        },
    },
    "llamagen-f16": {**SMALL_PYRAMID, "quantizer": CODES},
    "titok-b64": {
        **SMALL_TITOK, "pixel_decoder": {"widths": [32, 32, 32], "num_res_blocks": 1, "latent_channels": 8},
        "num_pixel_codes": 16, "quantizer": CODES,
    },
    "titok-bl64": {**SMALL_TITOK, "decoder": SMALL_VIT, "quantizer": {**CODES, "embedding_dim": 8}},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name]["type"] != "SimpleVQVAE"])
def test_every_row_is_a_valid_configuration(name):
    with torch.device("meta"):  # the published sizes, without their memory
        model = build(name)
    assert model.config()["quantizer"]["num_embeddings"] == model.vocab_size
    if name.endswith(("f8", "f16")):
        assert model.stride == int(name.rpartition("-f")[2])
    elif MODELS[name]["type"] == "PatchVQVAE":
        assert model.quantizer.patch_nums[-1] * model.stride in (64, 256)
    else:
        assert model.latent_grid((256, 256)) == (1, int("".join(c for c in name if c.isdigit())))


@pytest.mark.parametrize("name", SMALL)
def test_small_versions_learn_and_come_back(name, tmp_path):
    model = build(name, **SMALL[name]).train()
    image = (
        torch.sin(torch.linspace(0, 20, 3 * 16 * 16)).reshape(1, 3, 16, 16)
        * torch.tensor([1.0, -0.5])[:, None, None, None]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        output = model(image)
        loss = (output.reconstruction - image).square().mean() + output.quantizer_output.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((output.reconstruction - image).square().mean().item())
    assert min(losses[-3:]) < 0.7 * losses[0]
    # Of four φ three scales use three: the one that lies nearest to no scale learns nothing.
    learning = [item for item in model.named_parameters() if item[1].requires_grad and "phis.1" not in item[0]]
    reached = {key: value.grad is not None for key, value in learning}
    assert all(reached.values()), [key for key, value in reached.items() if not value]
    model.eval().save_pretrained(tmp_path)
    again = load(tmp_path)
    tokens = model.encode(image)
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.decode(tokens), model.decode(tokens))
    with torch.no_grad():
        assert (model(image).reconstruction - model.decode(tokens)).abs().max() < 1e-5


def test_build_merges_dictionaries():
    model = build("vqgan-f16", encoder={"widths": [32, 64]}, quantizer={"num_embeddings": 7})
    assert model.config()["encoder"]["latent_channels"] == 256
    assert (model.vocab_size, model.Cvae) == (7, 256)
    replaced = build(
        "vqgan-f16",
        encoder={"widths": [32], "latent_channels": 3},
        quantizer={"type": "LookupFreeQuantizer", "embedding_dim": 3},
    )
    assert isinstance(replaced.quantizer, LookupFreeQuantizer)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"encoder": {"widths": []}}, "widths"),
        ({"encoder": {"widths": [33]}}, "norm_groups"),
        ({"encoder": {"widths": [32], "attention_levels": [1]}}, "attention_levels"),
        ({"encoder": {"widths": [32], "num_res_blocks": 0}}, "num_res_blocks"),
        ({"encoder": {"widths": [32, 32], "resample": "bicubic"}}, "resample"),
        ({"encoder": {"widths": [32], "mid": ["convolution"]}}, "mid"),
        ({"encoder": {"widths": [32], "colour": 1}}, "colour"),
        ({"encoder": {"widths": [32], "projection": 2}}, "projection"),
        ({"encoder": {"widths": [32], "projection": 0, "latent_channels": 3}}, "projection"),
        ({"encoder": {"widths": [32], "style": {"shortcut": "2x2"}}}, "shortcut"),
        ({"encoder": {"widths": [32], "style": {"num_heads": 3}}}, "num_heads"),
        ({"decoder": {"widths": [32, 32, 32]}, "encoder": {"widths": [32, 32]}}, "decoder"),
        ({"image_range": [1, 0], "encoder": {"widths": [32]}}, "image_range"),
    ],
)
def test_bad_sizes_are_named(change, word, unchecked):
    with pytest.raises(ValueError, match=word):
        build("vqgan-f16", **change)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image_size": 18}, "image_size"),
        ({"num_latent_tokens": 0}, "num_latent_tokens"),
        ({"encoder": {**SMALL_VIT, "num_heads": 5}}, "num_heads"),
        ({"pixel_decoder": {"widths": [32]}}, "pixel_decoder"),
    ],
)
def test_bad_titok_sizes_are_named(change, word):
    arguments = {"encoder": SMALL_VIT, "image_size": 16, **change}
    with pytest.raises(ValueError, match=word):
        TiTok(VectorQuantizer(8, 4), **arguments)


def test_titok_tokens_are_one_row_and_know_no_scales():
    model = TiTok(VectorQuantizer(8, 4), SMALL_VIT, image_size=16, num_latent_tokens=5).eval()
    tokens = model.encode(torch.rand(2, 3, 16, 12) * 2 - 1)
    assert tokens.grids == ((1, 5),)
    again = Tokens.unflatten(tokens.flatten(), tokens.grids, tokens.image_size, tokens.vocab_size)
    assert torch.equal(model.decode(again), model.decode(tokens))
    assert not hasattr(model, "img_to_idxBl")


def test_image_range_is_the_networks_affair():
    torch.manual_seed(3)
    standard = VQGAN({"widths": [32]}, VectorQuantizer(16, 4)).eval()
    unit = VQGAN({"widths": [32]}, VectorQuantizer(16, 4), image_range=(0, 1)).eval()
    unit.load_state_dict(standard.state_dict())
    image = torch.rand(1, 3, 8, 8)
    assert torch.allclose(unit._latent(image * 2 - 1), standard._latent(image), atol=1e-5)
    tokens = unit.encode(image * 2 - 1)
    expected = standard._image(standard.quantizer.decode(tokens.indices[0]), (8, 8)) * 2 - 1
    assert torch.allclose(unit.decode(tokens), expected.clamp(-1, 1), atol=1e-5)


def test_depth_to_space_against_its_definition():
    x = torch.arange(2 * 8 * 3 * 2.0).reshape(2, 8, 3, 2)
    y = depth_to_space(x)
    for i in range(2):
        for j in range(2):
            assert torch.equal(y[:, :, i::2, j::2], x[:, (2 * i + j) * 2 : (2 * i + j) * 2 + 2])
