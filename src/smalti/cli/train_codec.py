"""`smalti train-codec TOKENS -o CODEC`: train the codec of `smalti encode --coding context`."""

import sys

from smalti.cli.counted import counted
from smalti.cli.parsing import parse_config
from smalti.jobs.train_codec import TrainCodecConfig, train_codec

EXAMPLES = (
    "smalti train-codec tokens -o codec.safetensors",
    "smalti train-codec two.tokens --run runs/photos -o codec.safetensors",
)
COMMON = ("out", "run", "force", "training.steps")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Parse, train, print; returns the exit code."""
    config = parse_config(
        TrainCodecConfig,
        arguments,
        prog="smalti train-codec",
        positionals=("tokens",),
        aliases={"-o": "out"},
        examples=EXAMPLES,
        common=COMMON,
    )
    steps = config.training.steps
    result = train_codec(
        config, lambda step, bits: print(f"step {step}/{steps}  {bits:.3f} bits per token", file=sys.stderr, flush=True)
    )
    print(
        f"{result.out}: codec {result.fingerprint[:12]}…, trained on {counted(result.num_tokens, 'token')} of "
        f"{counted(result.images, 'image')}; {result.bits_per_token:.3f} bits per token"
    )
    return 0
