"""Bytes on disk: token files, packed integers, atomic writing, weights found by hash. Imports no model."""

from smalti.formats.atomic import check_no_input, check_replaceable, replace_file, replace_folder
from smalti.formats.bits import bits_per_index, pack, packed_size, unpack
from smalti.formats.token_codec import TokenCodec
from smalti.formats.token_file import (
    Coding,
    OtherModelError,
    TokenFile,
    TokenFileError,
    TokenImage,
    needs_codec,
    read_token_file,
    write_token_file,
)
from smalti.formats.weights import WeightsFile, file_sha256, find_weights, load_tensors

__all__ = [
    "Coding",
    "OtherModelError",
    "TokenCodec",
    "TokenFile",
    "TokenFileError",
    "TokenImage",
    "WeightsFile",
    "bits_per_index",
    "check_no_input",
    "check_replaceable",
    "file_sha256",
    "find_weights",
    "load_tensors",
    "needs_codec",
    "pack",
    "packed_size",
    "read_token_file",
    "replace_file",
    "replace_folder",
    "unpack",
    "write_token_file",
]
