"""Context models over tokens, in integer arithmetic: they predict a token's probability from its neighbours."""

from smalti.codec.choice import chosen_coding, coding_tables
from smalti.codec.context_codec import ContextCodec
from smalti.codec.saved_codec import CODEC_FILE, find_codec, make_codec, read_codec, write_codec
from smalti.codec.training import CodecTrainingConfig, train_context_model

__all__ = [
    "CODEC_FILE",
    "CodecTrainingConfig",
    "ContextCodec",
    "chosen_coding",
    "coding_tables",
    "find_codec",
    "make_codec",
    "read_codec",
    "train_context_model",
    "write_codec",
]
