"""Panel 8: what was shared opens as the same tokens, and anything else is refused in one line."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch

from smalti.formats import OtherModelError, TokenFile, TokenFileError
from smalti.playground.share import LONGEST_LINK, from_link, open_shared, to_file, to_link
from smalti.tokenizers import SimpleVQVAE, Tokenizer

PAGE = "http://127.0.0.1:7860/"


def made(**changes: object) -> Tokenizer:
    return SimpleVQVAE(16, 8, 8, **changes).eval()  # type: ignore[arg-type]


TOKENIZERS = {"flat": made(), "pyramid": made(patch_nums=(1, 2, 4))}


@pytest.fixture(params=TOKENIZERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def shared(name: str, size: tuple[int, int] = (20, 28)) -> bytes:
    image = torch.randint(256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tokenizer = TOKENIZERS[name]
    return to_file(tokenizer.encode(image), tokenizer, "cat")


def test_a_link_opens_as_the_same_picture(name: str) -> None:
    data = shared(name)
    link = to_link(data, PAGE + "?theme=dark#old")
    address, _, letters = link.partition("#t=")
    assert address == PAGE + "?theme=dark"
    assert base64.urlsafe_b64decode(letters + "===") == data
    assert from_link(link) == from_link("#t=" + letters) == data
    found, title, tokens = open_shared(from_link(link), TOKENIZERS)
    assert (found, title) == (name, "cat")
    tokenizer = TOKENIZERS[name]
    own = tokenizer.encode(torch.zeros(1, 3, 20, 28, dtype=torch.uint8))
    assert (tokens.grids, tokens.image_size) == (own.grids, own.image_size)
    stored = TokenFile.from_bytes(data).images[0].indices
    assert np.array_equal(tokens.flatten()[0].numpy(), stored)
    again = to_file(tokens, tokenizer, title)
    assert again == data


def test_a_flipped_bit_in_any_byte_is_refused(name: str) -> None:
    data = shared(name)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << 5 * place % 8
        with pytest.raises(TokenFileError):
            open_shared(bytes(flipped), TOKENIZERS)


def test_every_changed_letter_of_a_link_is_refused(name: str) -> None:
    """Also the last one, some of whose bits belong to no byte."""
    link = to_link(shared(name), PAGE)
    start = link.index("#t=") + 3
    for place in [*range(start, len(link), 3), len(link) - 1]:
        letter = "B" if link[place] != "B" else "C"
        with pytest.raises(ValueError, match=r"altered|not a smalti token file|unsupported version|truncated"):
            open_shared(from_link(link[:place] + letter + link[place + 1 :]), TOKENIZERS)
    for bad in (link[:-1], link + "=", link + "A", link[:-4] + "(?)!", PAGE, "", link.replace("#t=", "#x=")):
        with pytest.raises(ValueError, match=r"link: got|truncated|altered"):
            open_shared(from_link(bad), TOKENIZERS)


def test_a_share_of_another_tokenizer_is_told_by_fingerprints() -> None:
    stranger = TOKENIZERS["flat"]
    known = {"pyramid": TOKENIZERS["pyramid"]}
    with pytest.raises(OtherModelError, match="another tokenizer's") as error:
        open_shared(shared("flat"), known)
    message = str(error.value)
    assert "\n" not in message
    assert stranger.fingerprint[:12] in message
    assert f"{known['pyramid'].fingerprint[:12]}… (pyramid)" in message


def test_a_long_link_is_refused_and_the_file_opens() -> None:
    data = shared("flat", (400, 500))
    with pytest.raises(ValueError, match=f"expected at most {LONGEST_LINK}; share the file"):
        to_link(data, PAGE)
    assert open_shared(data, TOKENIZERS)[2].image_size == (400, 500)


def test_files_that_are_no_single_moderate_picture_are_refused() -> None:
    file = TokenFile.from_bytes(shared("flat"))
    (image,) = file.images
    two = replace(file, images=(image, image))
    huge = replace(file, images=(replace(image, image_size=(2000, 3000)),))
    grey = replace(file, images=(replace(image, channels=1),))
    for bad, message in ((two, "2 pictures"), (huge, "3000 x 2000 pixels"), (grey, "1 channels")):
        with pytest.raises(TokenFileError, match=message):
            open_shared(bad.to_bytes(), TOKENIZERS)
