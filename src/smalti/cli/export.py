"""`smalti export MODEL OUT --format NAME`: a tokenizer in the format of another project, or as graphs."""

import sys

from smalti.cli.parsing import parse_config
from smalti.jobs.export import ExportConfig, export

EXAMPLES = (
    "smalti export runs/photos photos-onnx --format onnx",
    "smalti export runs/vqgan vqgan-taming --format taming",
)
COMMON = ("format", "force")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Parse, export, print; returns the exit code."""
    config = parse_config(
        ExportConfig,
        arguments,
        prog="smalti export",
        positionals=("model", "out"),
        aliases={"-o": "out"},
        examples=EXAMPLES,
        common=COMMON,
    )
    if config.format in ("onnx", "torch-export"):
        print("exporting graphs; many scales take several minutes", file=sys.stderr, flush=True)
    result = export(config)
    for note in result.notes:
        print(note)
    files = f"{', '.join(result.files)} ({result.num_bytes / 1e6:.1f} MB)"
    print(f"{result.out}: {files}, for {result.code}: {result.loading}")
    return 0
