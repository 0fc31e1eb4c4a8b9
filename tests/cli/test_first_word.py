"""Commands without the tokenizer's name take that of the box; with one they do what they always did."""

import json
from pathlib import Path

import pytest
from small_box import some_photos

from smalti.cli import main
from smalti.data import load_image
from smalti.formats import read_token_file
from smalti.tokenizers import PatchVQVAE
from smalti.zoo import load


@pytest.fixture
def folder(box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for `photos`, and a tokenizer that is not of the box."""
    monkeypatch.chdir(tmp_path)
    some_photos(tmp_path / "photos")
    PatchVQVAE(16, 4, {"widths": [8], "blocks": [1]}).save_pretrained("other")
    return tmp_path


def call(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that succeeds."""
    assert main(list(words)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_there_and_back_without_naming_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("encode", "photos/0.png", "-o", "0.tokens", capsys=capsys)
    call("encode", "photo-f8", "photos/0.png", "-o", "named.tokens", capsys=capsys)
    assert Path("0.tokens").read_bytes() == Path("named.tokens").read_bytes()
    call("decode", "0.tokens", "picture.png", capsys=capsys)
    call("decode", "photo-f8", "0.tokens", "-o", "named.png", capsys=capsys)
    assert "PSNR" in call("reconstruct", "photos/0.png", "again.png", capsys=capsys)
    expected = load_image("named.png")
    for path in ("picture.png", "again.png"):
        assert (load_image(path) == expected).all()
    call("encode", "photos/0.png", "photos/1.png", "-o", "two.tokens", capsys=capsys)
    assert len(read_token_file("two.tokens").images) == 2


def test_a_token_file_names_its_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("encode", "photo-pyramid", "photos/0.png", "-o", "pyramid.tokens", capsys=capsys)
    call("decode", "pyramid.tokens", "picture.png", capsys=capsys)
    call("reconstruct", "photo-pyramid", "photos/0.png", "again.png", capsys=capsys)
    assert (load_image("picture.png") == load_image("again.png")).all()
    call("encode", "other", "photos/0.png", "-o", "other.tokens", capsys=capsys)
    assert main(["decode", "other.tokens", "-o", "x.png"]) == 2
    line = "other.tokens: made by none of the built-in tokenizers (photo-f8, photo-pyramid); name the "
    assert capsys.readouterr().err == f"smalti decode: error: {line}tokenizer that made it\n"
    Path("other.tokens").write_bytes(Path("other.tokens").read_bytes()[:-1])
    assert main(["decode", "other.tokens", "x.png"]) == 2
    assert "truncated" in capsys.readouterr().err


def test_measuring_and_tokenizing_without_naming_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = json.loads(call("eval", "photos", "--judges=[]", "--json", capsys=capsys))
    assert (measured["run"], measured["fingerprint"]) == ("photo-f8", load("photo-f8").fingerprint)
    compared = json.loads(call("compare", "photos", "--judges=[]", "--json", capsys=capsys))
    assert compared["rows"][0]["name"] == "photo-f8"
    both = call("compare", "photo-f8", "other", "photos", "--judges=[]", "--json", "--size=16", capsys=capsys)
    assert [row["name"] for row in json.loads(both)["rows"]][:2] == ["photo-f8", "other"]
    made = json.loads(call("tokenize", "photos", "-o", "tokens", "--json", capsys=capsys))
    assert (made["rows"], made["tokens"]) == (6, 16)
    assert load("tokens/tokenizer").fingerprint == load("photo-f8").fingerprint


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("encode nowhere photos/0.png -o t", "nowhere: is not a folder with a saved model"),
        ("encode photos photos/0.png -o t", "photos: holds no config.json"),
        ("encode photos/9.png photos/0.png -o t", "photos/9.png"),
        ("encode -o t", "missing IMAGES"),
        ("encode other -o t", "missing IMAGES"),
        ("decode nowhere photos/0.png x.png", "nowhere: is not a folder with a saved model"),
        ("decode nowhere photos/0.png -o x.png", "nowhere: is not a folder with a saved model"),
        ("decode other t.tokens x.png y.png", "unexpected argument 'y.png', expected arguments: RUN TOKENS OUT"),
        ("decode t.tokens x.png", "t.tokens: No such file"),
        ("eval photo-f8", "missing DATA"),
        ("eval nowhere photos", "nowhere: is not a folder with a saved model"),
        ("compare other", "missing DATA"),
        ("reconstruct photos/0.png", "missing OUT"),
    ],
)
def test_what_is_neither_is_refused_in_one_line(
    folder: Path, call: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call.split()) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_name_that_means_two_things_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("other").save_pretrained("photo-f8")
    assert main(["eval", "photo-f8", "photos"]) == 2
    assert "photo-f8: is a built-in tokenizer and a file or folder here; write ./photo-f8" in capsys.readouterr().err
    measured = json.loads(call("eval", "./photo-f8", "photos", "--judges=[]", "--json", capsys=capsys))
    assert measured["fingerprint"] == load("other").fingerprint
    call("encode", "photos/0.png", "-o", "t", capsys=capsys)
    assert read_token_file("t", load("photo-f8").fingerprint).images


def test_an_empty_box_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call("encode", "photos/0.png", "-o", "t", capsys=capsys)
    monkeypatch.setattr("smalti.zoo.box.BOX", tmp_path)
    for words in (["encode", "photos/0.png", "-o", "u"], ["decode", "t", "x.png"], ["eval", "photos"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "no weights of it" in error or "built-in tokenizers (this installation has none)" in error
        assert error.count("\n") == 1


def test_options_and_recipes_name_it_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("run: other\n")
    for words in (["--run", "other", "photos"], ["photos", "--config", "r.yaml"], ["other", "--data", "photos"]):
        assert json.loads(call("eval", *words, "--judges=[]", "--json", capsys=capsys))["run"] == "other"


@pytest.mark.parametrize("verb", ["encode", "reconstruct", "eval", "compare", "tokenize"])
def test_help_says_which_one_it_is(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: smalti {verb} [RUN")
    assert "(default: photo-f8)" in text
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.index("smalti encode photo.jpg -o photo.tokens") > 0
