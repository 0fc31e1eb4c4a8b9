"""What a run takes from its model: every row has its own numbers, explicit ones win, pyramids follow the images."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from small_box import some_photos

from smalti.cli import main
from smalti.cli import train as train_verb
from smalti.data import TransformConfig
from smalti.jobs.train import TrainConfig, train
from smalti.jobs.train_config import FINE_TUNING_LR, ModelDefaults
from smalti.jobs.train_scales import fit_scales, scales_up_to
from smalti.ops.multi_scale import proportional_grids
from smalti.training import OptimizationConfig, Silent
from smalti.zoo import MODELS, TRAINING, build, load

RECIPES = Path(__file__).parents[2] / "recipes"


def parse(*words: str) -> TrainConfig:
    """What `smalti train` makes of its arguments."""
    return train_verb.parse(["x", "-o", "y", *words])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_says_how_it_is_trained_and_its_scales_fit(name: str) -> None:
    assert set(TRAINING) == set(MODELS)
    assert set(TRAINING[name]) == {field.name for field in fields(ModelDefaults)}
    config = TrainConfig("x", "y", model=name, **vars(ModelDefaults.of(name)))
    assert fit_scales(config) == (config, "")
    if MODELS[name]["type"] == "TiTok":
        with torch.device("meta"):
            assert config.input.size == build(name).config()["image_size"]


def test_nothing_said_is_the_default_model_in_python_as_on_the_command_line() -> None:
    config = parse()
    assert config == TrainConfig("x", "y")
    assert (config.input.size, config.optimization.batch_size) == (128, 4)


@pytest.mark.parametrize("name", ["photo-f8", "photo-pyramid"])
def test_the_recipes_of_the_box_say_what_the_models_say(name: str) -> None:
    cadence = {"log_every": 20, "sample_every": 500, "checkpoint_every": 1000}
    recipe = replace(parse("--config", str(RECIPES / f"{name}.yaml")), **cadence)
    assert recipe == replace(parse("--model", name), **cadence)


def test_options_and_recipes_win_over_the_model(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: vqgan-f16\noptimization: {lr: 3.0e-4}\nloss_weights: {l1: 2.0}\n")
    config = parse("--config", str(tmp_path / "r.yaml"), "--optimization.steps", "7")
    own = ModelDefaults.of("vqgan-f16")
    assert config.optimization == replace(own.optimization, lr=3e-4, steps=7)
    assert config.input == own.input
    assert config.loss_weights == {"l1": 2.0}
    assert ModelDefaults.of("vqgan-f16").optimization.lr == 1e-4
    again = parse("--config", str(tmp_path / "r.yaml"), "--model", "simple")
    assert again.input == ModelDefaults.of("simple").input


def test_help_shows_the_numbers_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    for words, size, lr in (([], 128, 0.0006), (["--model", "vqgan-f16"], 256, 0.0001)):
        assert main(["train", *words, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert f"no resizing and no crop. (default: {size})" in text
        assert f"end of the warm-up. (default: {lr})" in text


# ---- scales ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [(1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 4), (1,), (4,)])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13, 16, 32, 64])
def test_scales_grow_from_the_same_beginning_to_the_side(own: tuple[int, ...], side: int) -> None:
    sides = scales_up_to(side, own)
    assert sides == sorted(set(sides))
    assert sides[-1] == side
    assert all(each in own or each > own[-1] for each in sides[:-1])
    assert proportional_grids(sides, side, side) == tuple((each, each) for each in sides)
    assert scales_up_to(own[-1], own) == list(own)


def at(size: int | tuple[int, int] | None, model: str = "photo-pyramid", **model_args: object) -> TrainConfig:
    transform = TransformConfig(size=size, crop="random" if size else "center")
    return TrainConfig("x", "y", model=model, model_args=model_args, input=transform)


@pytest.mark.parametrize("model", ["photo-pyramid", "multi-scale", "patch-multi-scale"])
@pytest.mark.parametrize("size", [64, 128, 256, 384])
def test_a_pyramid_follows_the_images_and_says_so(model: str, size: int) -> None:
    config, line = fit_scales(at(size, model))
    before, after = build(model), build(model, **config.model_args)
    own, now = (list(each.quantizer.patch_nums) for each in (before, after))
    assert now[-1] == size // before.stride
    assert line == ("" if now == own else f"patch_nums: changed from {own} to {now} for images of {size} x {size}")
    assert fit_scales(config) == (config, "")


def test_images_that_are_not_square_fit_by_either_side() -> None:
    for size in ((256, 384), (384, 256), None):
        assert fit_scales(at(size))[1] == ""
    assert fit_scales(at((128, 192)))[0].model_args == {"quantizer": {"patch_nums": [1, 2, 3, 4, 5, 6, 8]}}


@pytest.mark.parametrize(
    ("model", "changes"),
    [("multi-scale", {"patch_nums": [1, 2, 4]}), ("photo-pyramid", {"quantizer": {"patch_nums": [1, 2, 4]}})],
)
def test_scales_that_somebody_chose_are_refused_where_they_do_not_fit(model: str, changes: dict) -> None:
    with pytest.raises(ValueError, match=r"^patch_nums: got \[1, 2, 4\], expected \[1, 2, 4, 8, .*16\] for images of"):
        fit_scales(at(256 if model == "photo-pyramid" else 128, model, **changes))


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_records_the_scales_that_it_has_and_is_resumed(tmp_path: Path) -> None:
    small = {"hidden_dim": 8, "vocab_size": 16, "embedding_dim": 4, "num_stages": 2}
    once = OptimizationConfig(steps=1, batch_size=2)
    config = TrainConfig(
        str(some_photos(tmp_path / "photos")), str(tmp_path / "run"), "multi-scale", small,
        input=TransformConfig(size=16), optimization=once, loss_weights={"l1": 1.0},
    )  # fmt: skip
    reporter = Notes()
    train(config, reporter)
    assert any("patch_nums: changed from [1, 2, 3, 4, 6, 8] to [1, 2, 3, 4]" in note for note in reporter.notes)
    recorded = yaml.safe_load((tmp_path / "run/train.yaml").read_text())
    assert recorded["model_args"] == {**small, "patch_nums": [1, 2, 3, 4]}
    for model_args in (small, recorded["model_args"]):  # as it was called first, and by its train.yaml
        assert train(replace(config, model_args=model_args, resume=True)).step == 1


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_goes_on_with_what_the_source_was_trained_with(
    box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = TrainConfig("x", "y").optimization
    for source in ("photo-f8", str(box / "photo-f8-run"), str(box / "photo-f8-run/checkpoints/000001")):
        config = parse("--init_from", source)
        assert (config.input.size, config.loss_weights) == (16, {"l2": 1.0})
        assert config.optimization.lr == own.lr * FINE_TUNING_LR
        assert (config.optimization.batch_size, config.optimization.decay_steps) == (own.batch_size, None)
    assert parse("--init_from", "photo-f8", "--model", "simple").input.size == 64
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text("input: {size: 7}")
    assert parse("--init_from", "user/name").input.size == 128  # not what happens to lie here


def test_a_boxed_tokenizer_is_the_beginning_and_loses_nothing(box: Path, tmp_path: Path) -> None:
    """At a learning rate of next to nothing the weights stay, and no code moves but by its average."""
    reporter, source = Notes(), load("photo-f8")
    slow = OptimizationConfig(steps=3, batch_size=4, lr=1e-9, warmup_steps=0)
    config = TrainConfig(
        str(some_photos(tmp_path / "photos")), str(tmp_path / "run"), init_from="photo-f8", optimization=slow,
        input=TransformConfig(size=16), loss_weights={"l2": 1.0}, precision="fp32",
    )  # fmt: skip
    train(config, reporter)
    assert "weights of photo-f8: encoder, quantizer, decoder taken" in reporter.notes
    tuned = load(tmp_path / "run")
    assert tuned.config() == source.config()
    assert int(tuned.quantizer.batches_seen) == int(source.quantizer.batches_seen) + 3  # no start from the data
    for name, tensor in source.state_dict().items():
        if not name.startswith("quantizer"):
            torch.testing.assert_close(tuned.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_the_scales_of_a_source_are_not_changed(box: Path) -> None:
    config = TrainConfig("x", "y", init_from="photo-pyramid", input=TransformConfig(size=16))
    assert fit_scales(config) == (config, "")
    with pytest.raises(ValueError, match=r"^patch_nums: got \[1, 2, 4\], expected \[1, 2, 4, 8\] for images of 32"):
        fit_scales(replace(config, input=TransformConfig(size=32)))
