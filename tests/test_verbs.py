"""The functions of `smalti` do what the command line does, byte for byte."""

import json
from pathlib import Path

import pytest
from small_box import some_photos

import smalti
from smalti.cli import main

TRAINING = "--model simple --model_args {vocab_size:_16,hidden_dim:_8} --input.size 16 --optimization.steps 2 --seed 3"


@pytest.fixture
def folder(box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `photos`, entered; the box is small."""
    monkeypatch.chdir(tmp_path)
    some_photos(tmp_path / "photos")
    return tmp_path


def call(words: str) -> None:
    assert main([word.replace(":_", ": ") for word in words.split()]) == 0, words


def same(one: str, other: str) -> bool:
    return Path(one).read_bytes() == Path(other).read_bytes()


@pytest.mark.parametrize(("model", "named"), [("", {}), ("photo-pyramid ", {"model": "photo-pyramid"})])
def test_encode_and_decode(folder: Path, model: str, named: dict) -> None:
    call(f"encode {model}photos/0.png photos/1.png -o command.tokens --coding adaptive")
    result = smalti.encode_file(["photos/0.png", Path("photos/1.png")], "ours.tokens", coding="adaptive", **named)
    assert same("command.tokens", "ours.tokens")
    assert result.file_bytes == Path("ours.tokens").stat().st_size
    call(f"decode {model}command.tokens command")
    decoded = smalti.decode_file("ours.tokens", "ours", **named)
    assert [image.path for image in decoded] == [Path("ours/0.png"), Path("ours/1.png")]
    assert all(same(f"command/{image.path.name}", str(image.path)) for image in decoded)


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("eval photos --size 16 --judges=[] --json")
    expected = json.loads(capsys.readouterr().out)
    assert smalti.evaluate("photos", size=16, judges=[]).to_dict() == {
        k: v for k, v in expected.items() if k != "command"
    }


def test_train_tokenize_train_a_prior_and_sample(folder: Path) -> None:
    call(f"train photos --out command {TRAINING} --loss_weights {{l2:_1.0}} --optimization.betas [0.9,0.95]")
    sizes = {"vocab_size": 16, "hidden_dim": 8}
    steps = {"steps": 2, "betas": [0.9, 0.95]}
    result = smalti.train(
        "photos", "ours", model="simple", model_args=sizes, input={"size": 16}, optimization=steps, seed=3,
        loss_weights={"l2": 1.0},
    )  # fmt: skip
    assert result.step == 2
    assert same("command/model.safetensors", "ours/model.safetensors")
    assert Path("command/train.yaml").read_text() == Path("ours/train.yaml").read_text().replace("ours", "command")

    call("tokenize command photos --out command-tokens --size 16 --crops 2")
    assert smalti.tokenize("photos", "our-tokens", model="command", size=16, crops=2).rows == 12
    assert same("command-tokens/tokens-00000.parquet", "our-tokens/tokens-00000.parquet")

    small = "{depth:_1,width:_16,num_heads:_1}"
    call(f"train-prior our-tokens --out prior --prior_args {small} --optimization.steps 1")
    call("sample prior --out command-samples -n 2 --seed 5 --temperature 0.5")
    smalti.sample("prior", Path("our-samples"), count=2, seed=5, sampling={"temperature": 0.5})
    assert same("command-samples/001.png", "our-samples/001.png")
    assert smalti.load_prior("prior").layout.fingerprint == smalti.load("command").fingerprint


def test_what_suits_the_model_is_what_suits_it_for_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError):
        smalti.train("nowhere", "run", model="vqgan-f16")
    smalti.train("photos", "run", init_from="photo-f8", optimization={"steps": 1}, input={"size": 16})
    call("train photos --out again --init_from photo-f8 --optimization.steps 1 --input.size 16")
    assert Path("run/train.yaml").read_text() == Path("again/train.yaml").read_text().replace("again", "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 16}, "sise: not an option, expected one of batch_size, "),
        ({"size": "big"}, "size: got 'big', expected a whole number or "),
        ({"batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"batch_size": [1]}, "batch_size: got [1], expected a whole number"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        smalti.evaluate("photos", **options)
    assert str(caught.value).startswith(message)


def test_a_wrong_option_of_a_group_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"stepps: not an option, expected one of steps, "):
        smalti.train("photos", "run", optimization={"stepps": 1})
