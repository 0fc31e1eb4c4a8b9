"""Training a codec on tokens by command, and coding with it: from token sets and from token files."""

import numpy as np
import pytest
from jobs.test_encode_decode import save_tokenizer

from smalti.cli import main
from smalti.codec import CODEC_FILE, CodecTrainingConfig, read_codec
from smalti.data import load_image, open_images, save_image
from smalti.formats import needs_codec, read_token_file
from smalti.jobs.encode import EncodeConfig, encode
from smalti.jobs.train_codec import TrainCodecConfig, train_codec
from smalti.zoo import load

pytest.importorskip("constriction", reason="needs the extra smalti[codec]")
SHORT = CodecTrainingConfig(steps=30, batch_size=256, embedding_dim=4, hidden_dim=8)
OPTIONS = ["--training.steps=5", "--training.batch_size=64", "--training.hidden_dim=8"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A tokenizer of three scales, another one, and photographs."""
    save_tokenizer(tmp_path / "run", patch_nums=(1, 2, 4))
    save_tokenizer(tmp_path / "other", patch_nums=(1, 2, 4), seed=1)
    (tmp_path / "photos").mkdir()
    photo = open_images("embedded:test").load(0)
    for i in range(6):
        save_image(tmp_path / f"photos/{i}.png", photo[40 * i : 40 * i + 64, 100:164].copy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_photographs_to_smaller_files_by_commands(world, capsys):
    assert main(["tokenize", "run", "photos", "--out", "tokens", "--size", "32", "--crops", "2"]) == 0
    assert main(["train-codec", "tokens", "-o", "run/codec.safetensors", *OPTIONS]) == 0
    assert "12 images" in capsys.readouterr().out
    assert read_codec(world / "run" / CODEC_FILE).tokenizer == load("run").fingerprint
    for coding in ("packed", "context"):
        assert main(["encode", "run", "photos/0.png", "photos/1.png", "-o", coding, "--coding", coding]) == 0
        assert main(["decode", "run", coding, "-o", f"{coding}-out"]) == 0
    assert needs_codec("context")
    assert not needs_codec("packed")
    for name in ("0.png", "1.png"):
        np.testing.assert_array_equal(load_image(f"context-out/{name}"), load_image(f"packed-out/{name}"))


def test_a_codec_of_token_files_codes_them_smaller_and_is_found_where_it_is_named(world, capsys):
    (world / "files").mkdir()
    photos = tuple(f"photos/{i}.png" for i in range(6))
    for number in range(3):
        encode(EncodeConfig("run", photos[2 * number :][:2], world / "files" / str(number)))
    result = train_codec(TrainCodecConfig("files", world / "my.codec", "run", SHORT))
    assert (result.images, result.num_tokens) == (6, 6 * read_token_file(world / "files/0").images[0].num_tokens)
    assert 0 < result.bits_per_token < np.log2(20)
    encode(EncodeConfig("run", photos, world / "context", "context", "my.codec"))
    encode(EncodeConfig("run", photos, world / "packed"))
    assert (world / "context").stat().st_size < 0.8 * (world / "packed").stat().st_size
    read = read_token_file(world / "context", codec=read_codec("my.codec"))
    assert read.images == read_token_file(world / "packed").images
    assert main(["decode", "run", "context", "-o", "out", "--codec", "my.codec"]) == 0
    capsys.readouterr()
    assert main(["decode", "run", "context", "-o", "never"]) == 2
    assert "context: coded by context, and run has no codec" in capsys.readouterr().err
    assert main(["decode", "context", "never"]) == 2
    assert "coded by context with a codec that no built-in tokenizer has" in capsys.readouterr().err
    train_codec(TrainCodecConfig("files/0", world / "run" / CODEC_FILE, "run", SHORT))
    assert main(["decode", "run", "context", "-o", "never"]) == 2
    assert "coded with another codec" in capsys.readouterr().err
    assert not (world / "never").exists()


def test_what_cannot_train_a_codec_is_refused(world):
    encode(EncodeConfig("run", ("photos/0.png",), world / "file"))
    with pytest.raises(ValueError, match="run: got none"):
        train_codec(TrainCodecConfig("file", world / "c"))
    with pytest.raises(ValueError, match="made with another model"):
        train_codec(TrainCodecConfig("file", world / "c", "other", SHORT))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train_codec(TrainCodecConfig("nowhere", world / "c", "run", SHORT))
    with pytest.raises(FileExistsError):
        train_codec(TrainCodecConfig("file", world / "file", "run", SHORT))
    with pytest.raises(ValueError, match="codec: got 'c', expected none with coding 'packed'"):
        EncodeConfig("run", ("photos/0.png",), world / "t", "packed", codec="c")
    with pytest.raises(ValueError, match="steps: got 0"):
        CodecTrainingConfig(steps=0)
    assert not (world / "c").exists()
