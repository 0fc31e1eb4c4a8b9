"""`smalti play [MODELS...]`: look at the tokens of a picture and change them, on a web page."""

from smalti.cli.parsing import parse_config
from smalti.playground.config import PlayConfig
from smalti.playground.serve import play

EXAMPLES = (
    "smalti play",
    "smalti play runs/photos photo-f8 --no-browser",
)
COMMON = ("prior", "host", "port", "no_browser")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Parse, then serve until Ctrl-C; returns the exit code."""
    config = parse_config(
        PlayConfig, arguments, prog="smalti play", positionals=("models",), examples=EXAMPLES, common=COMMON
    )
    play(config, on_ready=lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True))
    return 0
