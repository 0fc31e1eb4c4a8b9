"""`SmaltiImageProcessor`: the ids are those of tokenizer and vocabulary, images come back, folders are read again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import smalti
from smalti.data import TransformConfig
from smalti.tokenizers import ImageVocabulary, SimpleVQVAE
from smalti.zoo import SmaltiImageProcessor, image_processor

SIZES = ((16, 16), (8, 24), (24, 8))


@pytest.fixture(scope="module")
def processor() -> SmaltiImageProcessor:
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(32, 8, 8, num_stages=2, num_res_blocks=0, patch_nums=(1, 2, 4)).eval()
    return SmaltiImageProcessor(tokenizer, ImageVocabulary.of(tokenizer, 100, SIZES, rows=True))


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_ids_are_those_of_the_tokenizer_and_decode_to_its_image(processor: SmaltiImageProcessor) -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    tokens = processor.tokenizer.encode(pixels)
    expected = processor.vocabulary.encode(tokens)
    ids = processor(pixels, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, expected)
    again = [np.asarray(image) for (image,) in processor.batch_decode(ids)]
    assert np.array_equal(np.stack(again), processor.tokenizer.decode(tokens).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("given", "size"), [((40, 40), (16, 16)), ((20, 50), (8, 24)), ((200, 70), (24, 8)), ((9, 30), (8, 24))]
)
def test_an_image_takes_the_size_of_the_nearest_aspect_ratio(
    processor: SmaltiImageProcessor, given: tuple[int, int], size: tuple[int, int]
) -> None:
    picture = photo(*given)
    pixels = TransformConfig(size=size).apply(picture)[None]
    expected = processor.vocabulary.encode(processor.tokenizer.encode(pixels))[0].tolist()
    assert processor(picture)["input_ids"] == [expected]
    (image,) = processor.decode(expected)
    assert (image.height, image.width) == size


def test_every_kind_of_image_gives_the_same_ids(processor: SmaltiImageProcessor, tmp_path: Path) -> None:
    picture = photo(30, 30)
    picture.save(tmp_path / "a.png")
    array = np.asarray(picture)
    kinds = [picture, array, torch.tensor(array).permute(2, 0, 1), tmp_path / "a.png", str(tmp_path / "a.png")]
    first, *others = processor(kinds)["input_ids"]
    assert all(each == first for each in others)
    grey = picture.convert("L")
    assert processor(grey) == processor(np.asarray(grey)[:, :, None])


def test_images_are_found_between_text(processor: SmaltiImageProcessor) -> None:
    first, second = processor([photo(16, 16), photo(8, 24)])["input_ids"]
    images = processor.decode([1, 2, *first, 3, *second, 4])
    assert [(image.height, image.width) for image in images] == [(16, 16), (8, 24)]
    assert processor.decode([1, 2, 3]) == []


def test_it_is_saved_beside_a_language_model_and_read_again(processor: SmaltiImageProcessor, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llama"}
    again = smalti.SmaltiImageProcessor.from_pretrained(tmp_path)
    assert again.vocabulary == processor.vocabulary
    assert again(photo(16, 16)) == processor(photo(16, 16))
    assert smalti.load(tmp_path / "image_tokenizer").fingerprint == processor.tokenizer.fingerprint


def test_it_is_read_from_the_hub(
    processor: SmaltiImageProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor.save_pretrained(tmp_path)
    asked = []

    def fetch(repository: str, name: str, **options: str) -> Path:
        asked.append((repository, name, options))
        return tmp_path / name

    monkeypatch.setattr(image_processor, "fetch", fetch)
    again = SmaltiImageProcessor.from_pretrained("user/name", revision="main")
    assert again.vocabulary == processor.vocabulary
    assert {(repository, str(options)) for repository, _, options in asked} == {("user/name", "{'revision': 'main'}")}


def test_what_does_not_fit_is_refused(processor: SmaltiImageProcessor, tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(ValueError, match="images: got 'sequences of"):
        processor([photo(16, 16), photo(8, 24)], return_tensors="pt")
    with pytest.raises(ValueError, match="return_tensors: got 'np'"):
        processor(photo(16, 16), return_tensors="np")  # type: ignore[arg-type]
    for wrong in (torch.zeros(3, 16, 16), np.zeros((16, 16), np.uint8), torch.zeros(16, 16, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"image: got .*uint8"):
            processor(wrong)
    with pytest.raises(ValueError, match="vocabulary: got '7 codes', expected the tokenizer's 32"):
        SmaltiImageProcessor(processor.tokenizer, ImageVocabulary(7, 0, ((8, 8),), (((2, 2),),)))
    ids = processor(photo(16, 16))["input_ids"][0]
    with pytest.raises(ValueError, match="ids: got 0 at position 3"):
        processor.decode([*ids[:3], 0, *ids[4:]])
    with pytest.raises(FileNotFoundError):
        SmaltiImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    with pytest.raises(ValueError, match="expected SmaltiImageProcessor"):
        SmaltiImageProcessor.from_pretrained(tmp_path)
