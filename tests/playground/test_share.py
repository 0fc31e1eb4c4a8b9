"""Panel 8: what was shared opens as the same tokens, and anything else is refused in one line."""

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.formats import OtherModelError, TokenFile, TokenFileError
from smalti.jobs.encode import EncodeConfig, encode
from smalti.playground.opened import Opened
from smalti.playground.share import LONGEST_LINK, from_link, link, open_dropped, open_link, open_shared, to_link
from smalti.playground.workspace import Workspace
from smalti.tokenizers import SimpleVQVAE, Tokenizer, Tokens, to_token_image
from smalti.zoo import open_tokenizer

PAGE = "http://127.0.0.1:7860/"


def made(**changes: object) -> Tokenizer:
    return SimpleVQVAE(16, 8, 8, **changes).eval()  # type: ignore[arg-type]


TOKENIZERS = {"flat": made(), "pyramid": made(patch_nums=(1, 2, 4))}


@pytest.fixture(params=TOKENIZERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def shared(name: str, size: tuple[int, int] = (20, 28)) -> bytes:
    image = torch.randint(256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return file_of(name, TOKENIZERS[name].encode(image))


def file_of(name: str, tokens: Tokens) -> bytes:
    tokenizer = TOKENIZERS[name]
    return TokenFile(tokenizer.fingerprint, 16, (to_token_image("cat", tokens, 3),)).to_bytes()


def test_a_link_opens_as_the_same_picture(name: str) -> None:
    data = shared(name)
    address, _, letters = to_link(data, PAGE + "?theme=dark#old").partition("#t=")
    assert address == PAGE + "?theme=dark"
    assert base64.urlsafe_b64decode(letters + "===") == data
    assert from_link(f"{address}#t={letters}") == from_link("#t=" + letters) == data
    found, title, tokens = open_shared(data, TOKENIZERS)
    assert (found, title) == (name, "cat")
    tokenizer = TOKENIZERS[name]
    own = tokenizer.encode(torch.zeros(1, 3, 20, 28, dtype=torch.uint8))
    assert (tokens.grids, tokens.image_size) == (own.grids, own.image_size)
    assert np.array_equal(tokens.flatten()[0].numpy(), TokenFile.from_bytes(data).images[0].indices)
    assert file_of(name, tokens) == data


def test_a_flipped_bit_in_any_byte_is_refused(name: str) -> None:
    data = shared(name)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << 5 * place % 8
        with pytest.raises(TokenFileError):
            open_shared(bytes(flipped), TOKENIZERS)


def test_every_changed_letter_of_a_link_is_refused(name: str) -> None:
    """Also the last one, some of whose bits belong to no byte."""
    whole = to_link(shared(name), PAGE)
    start = whole.index("#t=") + 3
    for place in [*range(start, len(whole), 3), len(whole) - 1]:
        letter = "B" if whole[place] != "B" else "C"
        with pytest.raises(ValueError, match=r"altered|not a smalti token file|unsupported version|truncated"):
            open_shared(from_link(whole[:place] + letter + whole[place + 1 :]), TOKENIZERS)
    for bad in (whole[:-1], whole + "=", whole + "A", whole[:-4] + "(?)!", PAGE, "", whole.replace("#t=", "#x=")):
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


def test_files_that_are_no_single_moderate_picture_are_refused() -> None:
    file = TokenFile.from_bytes(shared("flat"))
    (image,) = file.images
    two = replace(file, images=(image, image))
    huge = replace(file, images=(replace(image, image_size=(2000, 3000)),))
    grey = replace(file, images=(replace(image, channels=1),))
    for bad, message in ((two, "2 pictures"), (huge, "3000 x 2000 pixels"), (grey, "1 channels")):
        with pytest.raises(TokenFileError, match=message):
            open_shared(bad.to_bytes(), TOKENIZERS)


# ---- the panel ------------------------------------------------------------------------------------------------------


def tab() -> Workspace:
    return Workspace({name: Opened(name, tokenizer) for name, tokenizer in TOKENIZERS.items()})


def test_what_one_tab_shares_another_opens_with_edits_and_model(name: str) -> None:
    sender, receiver = tab(), tab()
    sender.opened = sender.models[name]
    image = torch.randint(256, (1, 3, 20, 28), dtype=torch.uint8)
    sender.start(sender.opened.tokenizer.encode(image), image)
    sender.change({3: 7, 5: 2})
    told = link(sender, {"page": PAGE})
    data = from_link(told["link"])
    assert (told["bytes"], told["letters"]) == (len(data), len(told["link"]))
    assert told["fingerprint"] == TOKENIZERS[name].fingerprint
    for answer in (
        open_link(receiver, {"link": told["link"]}),
        open_dropped(receiver, {"name": "a", "data": base64.b64encode(data).decode()}),
    ):
        assert answer["model"] == name
        assert answer["tokens"] == sender.step.tokens.flatten()[0].tolist()
        assert torch.equal(receiver.step.image, sender.step.image)
        assert answer["numbers"]["psnr"] is None  # the original is unknown
    receiver.choose("flat")  # the picture stays, for other tokenizers too
    assert receiver.step.tokens.image_size == (20, 28)


def test_a_picture_too_large_for_a_link_is_shared_as_a_file() -> None:
    workspace = tab()
    image = torch.randint(256, (1, 3, 700, 900), dtype=torch.uint8)
    workspace.start(workspace.opened.tokenizer.encode(image), image)
    told = link(workspace, {"page": PAGE})
    assert (told["link"], told["most"]) == (None, LONGEST_LINK)
    assert told["letters"] > LONGEST_LINK


def test_a_refused_share_leaves_the_tab_as_it_was() -> None:
    workspace = tab()
    image = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    workspace.start(workspace.opened.tokenizer.encode(image), image)
    before = workspace.step
    file = TokenFile.from_bytes(shared("pyramid"))
    impossible = replace(file, images=(replace(file.images[0], image_size=(64, 64)),)).to_bytes()
    for bad in (impossible, shared("pyramid")[:-1], b""):
        with pytest.raises(ValueError, match=r".+"):
            open_dropped(workspace, {"name": "a", "data": base64.b64encode(bad).decode()})
        assert workspace.opened.name == "flat"
        assert workspace.step is before


def test_files_of_smalti_encode_open_too(tmp_path: Path) -> None:
    """It codes by context with the codec beside the tokenizer."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encode(EncodeConfig("photo-f8", (str(tmp_path / "a.png"),), tmp_path / "a.tokens", device="cpu"))
    data, photo = (tmp_path / "a.tokens").read_bytes(), open_tokenizer("photo-f8")
    found, name, opened = open_shared(data, {"pyramid": TOKENIZERS["pyramid"], "photo-f8": photo})
    assert (found, name) == ("photo-f8", "a.png")
    own = photo.encode(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])
    assert torch.equal(opened.flatten(), own.flatten())
    with pytest.raises(TokenFileError, match="coded with the codec"):
        open_shared(data, TOKENIZERS)
