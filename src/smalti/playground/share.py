"""Panel 8, Share: the tokens of a picture as a link or a small file, and back.

Both hold the bytes of a token file (`smalti.formats.token_file`): the tokens, the fingerprint of their tokenizer and a
checksum. In a link they stand in the fragment, in the alphabet of base64url (RFC 4648, section 5) without padding:

    http://127.0.0.1:7860/#t=iVNNTFQNChoBAA…

A browser never sends the fragment to a server: the page reads it and opens the tokens.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from smalti.codec import CODEC_FILE, ContextCodec, coding_tables, read_codec
from smalti.formats import OtherModelError, TokenFile, TokenFileError
from smalti.formats.byte_fields import fixed
from smalti.formats.token_file import COMPACT, MAGIC, VERSION_END
from smalti.playground.look import open_picture, state
from smalti.playground.paint import token_file_bytes
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Picture, Workspace
from smalti.tokenizers import Tokenizer, Tokens, to_tokens
from smalti.zoo import saved_folder

MARK = "#t="
"""Begin of the fragment."""
LONGEST_LINK = 16_000
"""Characters, which all browsers open. With more the page offers the file alone."""
LARGEST_PICTURE = 1 << 20
"""Pixels of the largest shared picture that is opened."""


class OtherTokenizerError(RefusalError, OtherModelError):
    """A shared picture of a tokenizer that is not open."""


class OtherContentError(RefusalError, TokenFileError):
    """A token file that the page does not show: several pictures, a very large one, or other channels."""


def link(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """The current tokens as a link to the page at `page`; without `link` if it is too long."""
    data = token_file_bytes(workspace)
    made = to_link(data, str(arguments["page"]))
    told = {
        "bytes": len(data),
        "letters": len(made),
        "most": LONGEST_LINK,
        "fingerprint": workspace.opened.tokenizer.fingerprint,
    }
    return {**told, "link": made if len(made) <= LONGEST_LINK else None}


def open_link(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Open the tokens in the link `link`."""
    return _opened(workspace, from_link(str(arguments["link"])))


def open_dropped(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Open a dropped file, `name` and `data` in base64: a token file, or a picture as `look.open_picture` does."""
    letters = str(arguments["data"])
    if not letters.startswith(base64.b64encode(MAGIC[:6]).decode()):
        return open_picture(workspace, arguments)
    return _opened(workspace, base64.b64decode(letters))


def _opened(workspace: Workspace, data: bytes) -> dict[str, Any]:
    """Begin with shared tokens, in the tokenizer that made them; the picture is what they show."""
    models = {name: opened.tokenizer for name, opened in workspace.models.items()}
    model, name, tokens = open_shared(data, models)
    opened = workspace.models[model]
    tokens = tokens.to(opened.device)
    image = opened.tokenizer.decode(tokens)[0].cpu()  # refuses impossible tokens before anything changes
    array = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    workspace.opened = opened
    workspace.picture = Picture(name, (array.shape[1], array.shape[0]), Image.fromarray(array))
    workspace.start(tokens)
    return state(workspace)


def to_link(data: bytes, page: str) -> str:
    """A token file as a link to the page, whose address is `page`."""
    return page.partition("#")[0] + MARK + _letters(data)


def from_link(link: str) -> bytes:
    """The bytes of the token file in a link, or in a fragment alone.

    Raises:
        ValueError: no link of this kind.
    """
    _, mark, letters = link.strip().partition(MARK)
    if not mark:
        raise RefusalError("refused_link", mark=MARK)
    try:
        data = base64.b64decode(letters + "=" * (-len(letters) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if _letters(data) != letters:
        raise RefusalError("refused_altered", mark=MARK)
    return data


def open_shared(data: bytes, tokenizers: Mapping[str, Tokenizer]) -> tuple[str, str, Tokens]:
    """The name of the tokenizer that made a token file, the name of the picture, and its tokens.

    Args:
        data: bytes of the file.
        tokenizers: the opened tokenizers by name; the one with the fingerprint in the file is taken.

    Raises:
        OtherModelError: made with none of these tokenizers. The message names the fingerprints.
        TokenFileError: not a token file, truncated, altered, or not a single picture of a moderate size.
    """
    by_context = data[:VERSION_END] == MAGIC + fixed(COMPACT, 2)
    for name, tokenizer in tokenizers.items():
        codec = _codec_of(name) if by_context else None
        if by_context and codec is None:
            continue
        try:
            file = TokenFile.from_bytes(data, tokenizer.fingerprint, coding_tables(tokenizer), codec)
        except OtherModelError:
            continue
        return name, *_only_picture(file, tokenizer)
    made_by = TokenFile.from_bytes(data).fingerprint
    own = ", ".join(f"{tokenizer.fingerprint[:12]}… ({name})" for name, tokenizer in tokenizers.items())
    raise OtherTokenizerError("refused_fingerprint", got=f"{made_by[:12]}…", expected=own)


def _only_picture(file: TokenFile, tokenizer: Tokenizer) -> tuple[str, Tokens]:
    """Name and tokens of the picture in the file."""
    if len(file.images) != 1:
        raise OtherContentError("refused_pictures", count=len(file.images))
    (image,) = file.images
    if math.prod(image.image_size) > LARGEST_PICTURE:
        height, width = image.image_size
        raise OtherContentError("refused_pixels", width=width, height=height, most=LARGEST_PICTURE)
    if image.channels != tokenizer.image_channels:
        raise OtherContentError("refused_channels", got=image.channels, expected=tokenizer.image_channels)
    return image.name, to_tokens(image, file.vocab_size)


def _codec_of(name: str) -> ContextCodec | None:
    """The codec in the folder of a tokenizer, for files of smalti encode; None: there is none."""
    path = saved_folder(name) / CODEC_FILE
    return read_codec(path) if path.is_file() else None


def _letters(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
