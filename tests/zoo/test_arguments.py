"""Sizes of models that a user may mistype: each is refused in one line that names it, before memory is asked for."""

import pytest
import torch

from smalti.priors import TokenLayout
from smalti.zoo import MODELS, PRIORS, TOKENIZERS, build, build_prior
from smalti.zoo import memory as memory_module
from smalti.zoo.priors import CONFIGS

HUGE = 10**12
WRONG = [1e3, 1.5, "abc", None, [], {"a": 1}, HUGE, -1, 0, float("nan"), 2**70]
LAYOUT = TokenLayout(16, ((2, 2),), (16, 16))

MODEL_ARGUMENTS = {
    "simple": ("vocab_size", "embedding_dim", "hidden_dim", "num_stages", "num_res_blocks", "image_channels",
               "activation", "norm", "patch_nums", "quantizer"),
    "vqgan-f8": ("encoder", "decoder", "quantizer", "image_range", "unit_codes", "image_channels", "source"),
    "titok-s128": ("encoder", "quantizer", "num_latent_tokens", "pixel_decoder", "num_pixel_codes", "image_size"),
}  # fmt: skip
VALID = {
    ("num_res_blocks", 0), ("patch_nums", None), ("quantizer", None), ("decoder", None), ("source", None),
    ("pixel_decoder", None),
}  # fmt: skip


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model, names in MODEL_ARGUMENTS.items() for name in names]
)
def test_wrong_arguments_of_models(model, name, value):
    if any(name == known and value is allowed for known, allowed in VALID) or (name == "source" and value == {"a": 1}):
        return
    with pytest.raises(ValueError, match=r".") as caught:
        build(model, **{name: value})
    one_line(caught)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("simple", {"vocab_size": 1e3}, "vocab_size: got 1000.0, expected a whole number"),
        ("simple", {"patch_nums": 16}, "patch_nums: got 16, expected null or a list of: a whole number"),
        ("simple", {"hidden_dim": "abc"}, "hidden_dim: got 'abc', expected a whole number"),
        ("simple", {"hidden_dim": None}, "hidden_dim: got None, expected a whole number"),
        ("simple", {"num_stages": 10**9}, "num_stages: got 1000000000, expected 1 to 16"),
        ("vqgan-f8", {"encoder": {"widths": 3}}, "widths: got 3, expected a list of: a whole number"),
        ("vqgan-f8", {"encoder": {"style": {"norm_groups": 0}}}, "norm_groups: got 0, expected at least 1"),
        ("vqgan-f8", {"quantizer": {"beta": "x"}}, "beta: got 'x', expected a number"),
        ("vqgan-f8", {"quantizer": {"init": 3}}, "KMeansInit: got 3, expected a table of its arguments"),
        ("titok-s128", {"encoder": {"layers": 10**9}}, "layers: got 1000000000, expected 1 to 1000"),
    ],
)
def test_the_message_names_the_argument(model, arguments, message):
    with pytest.raises(ValueError, match=r".") as caught:
        build(model, **arguments)
    assert one_line(caught) == message


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("kind", CONFIGS)
def test_wrong_arguments_of_priors(kind, value):
    name = next(name for name, row in PRIORS.items() if row["type"] == kind)
    for field in CONFIGS[kind].__dataclass_fields__:
        try:
            CONFIGS[kind](**{field: value})
            fine = type(value) in (int, float)
        except (ValueError, TypeError):
            fine = False
        if fine or (field == "choice_noise" and value in (0, -1)):
            continue
        with pytest.raises(ValueError, match=r".") as caught:
            build_prior(name, LAYOUT, 0, **{field: value})
        one_line(caught)


def test_a_model_larger_than_the_memory_is_refused_and_one_that_fits_is_not(monkeypatch):
    size = sum(tensor.nbytes for tensor in build("simple", hidden_dim=8).state_dict().values())
    monkeypatch.setattr(memory_module, "machine_memory", lambda: size)
    build("simple", hidden_dim=8)
    monkeypatch.setattr(memory_module, "machine_memory", lambda: size - 1)
    with pytest.raises(ValueError, match="the memory of this machine"):
        build("simple", hidden_dim=8)


@pytest.mark.parametrize("model", ["simple", "multi-scale"])
def test_asking_for_the_memory_draws_no_random_number(model):
    row = dict(MODELS[model])
    torch.manual_seed(1)
    plain = TOKENIZERS[row.pop("type")](**row)
    torch.manual_seed(1)
    assert build(model).fingerprint == plain.fingerprint
