"""`smalti import CHECKPOINT OUT`: a published checkpoint to a folder that every other command takes."""  # noqa: N999

from smalti.cli.parsing import parse_config
from smalti.jobs.import_checkpoint import ImportConfig, ImportResult, import_checkpoint

EXAMPLES = (
    "smalti import vq_ds16_c2i.pt llamagen",
    "smalti import model.ckpt emu35 --family emu35-ibq",
)
COMMON = ("family", "patch_nums", "metric", "image_range", "force")
"""`--help` shows these examples and options."""


def run(arguments: list[str]) -> int:
    """Parse, import, print; returns the exit code."""
    config = parse_config(
        ImportConfig,
        arguments,
        prog="smalti import",
        positionals=("checkpoint", "out"),
        examples=EXAMPLES,
        common=COMMON,
    )
    result = import_checkpoint(config)
    print(f"{config.out}: {describe(result)}")
    print(f"family {result.family}: {result.why}")
    if result.assumed:
        print(f"assumed: {', '.join(f'{name}={value}' for name, value in result.assumed.items())}")
    if result.ignored:
        print(f"ignored: {', '.join(result.ignored)}")
    print(f"source: {result.source['url']}, licence: {result.source['licence']}")
    return 0


def describe(result: ImportResult) -> str:
    """One line about a tokenizer."""
    return (
        f"{result.source['title']} ({result.family}), {result.model} with {result.parameters / 1e6:.2f} million "
        f"parameters, {result.vocab_size} codes, stride {result.stride}"
    )
