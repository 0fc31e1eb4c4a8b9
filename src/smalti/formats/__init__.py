"""Bytes on disk: the token file, packed integers, and writing that is all or nothing. Knows no model."""

from smalti.formats.atomic import check_replaceable, replace_file, replace_folder
from smalti.formats.bits import bits_per_index, pack, packed_size, unpack
from smalti.formats.token_file import TokenFile, TokenFileError, TokenImage, read_token_file, write_token_file

__all__ = [
    "TokenFile",
    "TokenFileError",
    "TokenImage",
    "bits_per_index",
    "check_replaceable",
    "pack",
    "packed_size",
    "read_token_file",
    "replace_file",
    "replace_folder",
    "unpack",
    "write_token_file",
]
