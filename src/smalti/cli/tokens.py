"""`smalti tokens verify|info|show DIR …`: questions to a token data set."""

import sys

from rich.console import Console
from rich.table import Table

from smalti.cli import nearest
from smalti.cli.parsing import parse_config
from smalti.jobs.tokens import ShowTokensConfig, TokensConfig, check_tokens, describe_tokens, show_tokens

WRONG = 1
"""Exit code of `verify` where something is wrong."""
QUESTIONS = {
    "verify": "read every byte and name what is missing, altered or miscounted",
    "info": "what the set holds",
    "show": "decode one row: smalti tokens show DIR KEY OUT.png",
}


def run(arguments: list[str]) -> int:
    """Answer one question; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: smalti tokens QUESTION DIR\n")
        print("\n".join(f"  {name:<8}{line}" for name, line in QUESTIONS.items()))
        return 0
    question, *rest = arguments
    if question not in QUESTIONS:
        close = nearest(question, list(QUESTIONS))
        raise ValueError(f"unknown question {question!r}{close}, expected one of {', '.join(QUESTIONS)}")
    return {"verify": _verify, "info": _info, "show": _show}[question](rest)


def _verify(arguments: list[str]) -> int:
    config = parse_config(TokensConfig, arguments, prog="smalti tokens verify", positionals=("tokens",))
    problems = check_tokens(config)
    for problem in problems:
        print(f"smalti tokens verify: {problem}", file=sys.stderr)
    print(f"{config.tokens}: " + (f"{len(problems)} problems" if problems else "whole"))
    return WRONG if problems else 0


def _info(arguments: list[str]) -> int:
    config = parse_config(TokensConfig, arguments, prog="smalti tokens info", positionals=("tokens",))
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
    )
    row = show_tokens(config)
    label = "" if row.label is None else f", class {row.label}"
    print(f"{config.out}: {row.key}, view {row.view}, {len(row.indices)} tokens{label}")
    return 0
