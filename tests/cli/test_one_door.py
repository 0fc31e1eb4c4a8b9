"""Whatever names a tokenizer or a prior for one command names it for all of them: publishers' checkpoints, too."""

from pathlib import Path

import pytest
from published import checkpoint
from small_box import some_photos

from smalti.cli import main
from smalti.data import load_image
from smalti.formats import read_token_file
from smalti.playground.config import PlayConfig
from smalti.playground.serve import open_models
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import open_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `photos`, entered."""
    monkeypatch.chdir(tmp_path)
    some_photos(tmp_path / "photos")
    return tmp_path


def test_every_command_takes_a_published_tokenizer(folder: Path, golden: Path) -> None:
    source = str(checkpoint(golden, "maskgit_vqgan"))
    for call in (
        f"encode {source} photos/0.png -o 0.tokens",
        f"decode {source} 0.tokens decoded.png",
        f"reconstruct {source} photos/0.png again.png",
        f"eval {source} photos --size 16 --judges=[] --json",
        f"compare {source} photos --size 16 --judges=[] --json",
        f"tokenize {source} photos -o tokens --size 32",
        "train-codec tokens -o codec --training.steps 2",
        f"train-codec 0.tokens -o codec --force --training.steps 2 --run {source}",
        f"train photos -o run --init_from {source} --input.size 32 --optimization.steps 1 --optimization.batch_size 1",
    ):
        assert main(call.split()) == 0, call
    assert read_token_file("0.tokens").fingerprint == open_tokenizer(source).fingerprint
    assert (load_image("decoded.png") == load_image("again.png")).all()


def test_sample_takes_a_published_prior_and_its_tokenizer(
    folder: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prior, tokenizer = (str(checkpoint(golden, name)) for name in ("var_vqvae_transformer", "var_vqvae"))
    assert main(["sample", prior, "--tokenizer", tokenizer, "-n", "1", "-o", "drawn", "--class", "#3"]) == 0
    assert Path("drawn/000.png").is_file()
    capsys.readouterr()
    assert main(["sample", prior, "-o", "again"]) == 2
    assert "tokenizer: got none, expected the tokenizer of the published prior" in capsys.readouterr().err


def test_sample_takes_what_the_file_of_a_published_prior_does_not_tell(
    folder: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prior, tokenizer = (str(checkpoint(golden, name)) for name in ("llamagen_vq16_gpt", "llamagen_vq16"))
    call = ["sample", prior, "--tokenizer", tokenizer, "-n", "1", "-o", "drawn", "--num_heads", "3"]
    assert main(call) == 2
    assert "grid: got none, expected [16, 16] for a model of 256 pixels" in capsys.readouterr().err
    assert main([*call, "--grid", "[3, 2]"]) == 0
    assert load_image("drawn/000.png").shape == (48, 32, 3)  # stride 16
    opened = open_models(PlayConfig((tokenizer,), prior, grid=(3, 2), num_heads=3, device="cpu"))
    assert opened[tokenizer].prior.layout.image_size == (48, 32)
    SimpleVQVAE(8, 4, 4).save_pretrained("ours")
    assert main(["sample", "ours", "--grid", "[3, 2]", "-o", "again"]) == 2
    assert "grid: got options for ours, expected none with a saved prior" in capsys.readouterr().err
