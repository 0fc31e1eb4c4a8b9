"""`smalti tokens verify|info|show DIR …`: inspect a token data set."""

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from smalti.cli import nearest
from smalti.cli.counted import counted
from smalti.cli.parsing import parse_config
from smalti.jobs.tokens import ShowTokensConfig, TokensConfig, check_tokens, describe_tokens, show_tokens

WRONG = 1
"""Exit code of `verify` if there are problems."""
QUESTIONS = {
    "verify": "read every byte and report missing, altered or miscounted shards, and damaged arrays",
    "info": "print number of images, tokens per row, vocabulary size, classes, tokenizer",
    "show": "decode one row to an image: smalti tokens show DIR KEY OUT.png",
}


EXAMPLES = {
    "verify": ("smalti tokens verify tokens", "smalti tokens verify s3://bucket/tokens"),
    "info": ("smalti tokens info tokens", "smalti tokens info s3://bucket/tokens"),
    "show": ("smalti tokens show tokens a.jpg a.png", "smalti tokens show tokens a.jpg a.png --view 1"),
}
"""`--help` shows these examples, by question."""


@dataclass(frozen=True)
class VerifyCommand(TokensConfig):
    """Read every byte of a token data set, and report missing, altered or miscounted shards, and damaged arrays."""


@dataclass(frozen=True)
class InfoCommand(TokensConfig):
    """Print the contents of a token data set: images, tokens per row, vocabulary size, classes, tokenizer."""


def run(arguments: list[str]) -> int:
    """Run one subcommand; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "--help-all"):
        print("usage: smalti tokens SUBCOMMAND DIR [--option value ...]\n\nInspect a token data set.\n")
        print("\n".join(["examples:", *(f"  {examples[0]}" for examples in EXAMPLES.values()), "\nsubcommands:"]))
        print("\n".join(f"  {name:<8}{line}" for name, line in QUESTIONS.items()))
        print("\nsmalti tokens SUBCOMMAND --help prints the arguments of a subcommand.")
        return 0
    question, *rest = arguments
    if question not in QUESTIONS:
        close = nearest(question, list(QUESTIONS))
        raise ValueError(f"unknown subcommand {question!r}{close}, expected one of {', '.join(QUESTIONS)}")
    return {"verify": _verify, "info": _info, "show": _show}[question](rest)


def _verify(arguments: list[str]) -> int:
    config = parse_config(
        VerifyCommand, arguments, prog="smalti tokens verify", positionals=("tokens",), examples=EXAMPLES["verify"]
    )
    problems = check_tokens(config)
    for problem in problems:
        print(f"smalti tokens verify: {problem}", file=sys.stderr)
    print(f"{config.tokens}: " + (f"problems found: {len(problems)}" if problems else "no problems found"))
    return WRONG if problems else 0


def _info(arguments: list[str]) -> int:
    config = parse_config(
        InfoCommand, arguments, prog="smalti tokens info", positionals=("tokens",), examples=EXAMPLES["info"]
    )
    table = Table(box=None, show_header=False)
    for name, value in describe_tokens(config).items():
        table.add_row(name, value)
    Console(markup=False, highlight=False, emoji=False).print(table)
    return 0


def _show(arguments: list[str]) -> int:
    config = parse_config(
        ShowTokensConfig,
        arguments,
        prog="smalti tokens show",
        positionals=("tokens", "key", "out"),
        aliases={"-o": "out"},
        examples=EXAMPLES["show"],
    )
    row = show_tokens(config)
    label = "" if row.label is None else f", class {row.label}"
    print(f"{config.out}: {row.key}, view {row.view}, {counted(len(row.indices), 'token')}{label}")
    return 0
