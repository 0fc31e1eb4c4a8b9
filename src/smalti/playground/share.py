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

from smalti.codec import coding_tables
from smalti.formats import OtherModelError, TokenFile, TokenFileError
from smalti.tokenizers import Tokenizer, Tokens, to_token_image, to_tokens

MARK = "#t="
"""Begin of the fragment."""
LONGEST_LINK = 8000
"""Characters. Browsers open longer links, but mail and chat programs cut them; the page offers the file instead."""
LARGEST_PICTURE = 1 << 20
"""Pixels of the largest shared picture that is opened."""


def to_file(tokens: Tokens, tokenizer: Tokenizer, name: str = "picture") -> bytes:
    """Tokens of one picture as the bytes of a packed token file."""
    image = to_token_image(name, tokens, tokenizer.image_channels)
    return TokenFile(tokenizer.fingerprint, tokenizer.vocab_size, (image,)).to_bytes()


def to_link(data: bytes, page: str) -> str:
    """A token file as a link to the page, whose address is `page`.

    Raises:
        ValueError: the link is longer than `LONGEST_LINK`.
    """
    link = page.partition("#")[0] + MARK + _letters(data)
    if len(link) > LONGEST_LINK:
        raise ValueError(f"link: got {len(link)} characters, expected at most {LONGEST_LINK}; share the file instead")
    return link


def from_link(link: str) -> bytes:
    """The bytes of the token file in a link, or in a fragment alone.

    Raises:
        ValueError: no link of this kind.
    """
    _, mark, letters = link.strip().partition(MARK)
    if not mark:
        raise ValueError(f"link: got no tokens in it, expected {MARK} and the tokens")
    try:
        data = base64.b64decode(letters + "=" * (-len(letters) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if _letters(data) != letters:
        raise ValueError(f"link: got other characters after {MARK} than base64url's, expected an unaltered link")
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
    for name, tokenizer in tokenizers.items():
        try:
            file = TokenFile.from_bytes(data, tokenizer.fingerprint, coding_tables(tokenizer))
        except OtherModelError:
            continue
        return name, *_only_picture(file, tokenizer)
    made_by = TokenFile.from_bytes(data).fingerprint
    own = ", ".join(f"{tokenizer.fingerprint[:12]}… ({name})" for name, tokenizer in tokenizers.items())
    raise OtherModelError(f"shared picture: got the fingerprint {made_by[:12]}…, another tokenizer's, expected {own}")


def _only_picture(file: TokenFile, tokenizer: Tokenizer) -> tuple[str, Tokens]:
    """Name and tokens of the picture in the file."""
    if len(file.images) != 1:
        raise TokenFileError(f"shared picture: got {len(file.images)} pictures, expected one")
    (image,) = file.images
    if math.prod(image.image_size) > LARGEST_PICTURE:
        height, width = image.image_size
        raise TokenFileError(f"shared picture: got {width} x {height} pixels, expected at most {LARGEST_PICTURE}")
    if image.channels != tokenizer.image_channels:
        raise TokenFileError(f"shared picture: got {image.channels} channels, expected {tokenizer.image_channels}")
    return image.name, to_tokens(image, file.vocab_size)


def _letters(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
