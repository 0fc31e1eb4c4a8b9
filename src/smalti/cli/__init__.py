"""The command line, `smalti VERB ...`: this module only picks the verb; each verb is one module beside it.

Nothing heavy is imported here. The module of a verb, and torch with it, is imported when that verb is chosen, so that
`smalti --help` answers at once. A user's mistake prints one line and ends with exit code 2. A bug in this package
prints two lines and ends with exit code 1. `SMALTI_TRACEBACK=1` shows the traceback instead.

Nothing in the current directory is ever imported, neither here nor in a process that a command starts: the directory
may be a folder of downloads.
"""

# The imports here and in `smalti/__init__.py` run before `cli/__main__.py` can clean the path of `python -m`. They may
# only name modules that Python itself has loaded by then.
import importlib
import os
import re
import sys

COMMANDS = {
    "train": "train a tokenizer on a folder of images",
    "eval": "measure a tokenizer on a set of images: PSNR, SSIM, LPIPS, rFID, bits per pixel, codebook usage",
    "compare": "measure several tokenizers on the same images, beside JPEG and WebP at the same file size",
    "encode": "encode images into one token file",
    "decode": "decode a token file into images",
    "reconstruct": "encode and decode one image, and print the PSNR",
    "tokenize": "tokenize a set of images once, into a token data set for training",
    "tokens": "verify or describe a token data set, or decode one of its rows",
    "train-codec": "train a codec that predicts each token from its neighbours, for smaller token files",
    "train-prior": "train a prior, a generator of tokens, on a token data set",
    "sample": "sample images from a trained prior, or edit part of a photograph with it",
    "eval-samples": "measure sampled images against reference images: gFID, KID, Inception Score",
    "play": "look at the tokens of a picture and change them, on a web page of this machine",
    "import": "convert a published tokenizer checkpoint to a folder that every other command takes",
    "export": "write a tokenizer in the format of VAR, taming, LlamaGen or diffusers, as ONNX or for torch.export",
    "doctor": "check that a device computes what the CPU computes, and list what is installed",
    "demo": "use photo-f8, then train, evaluate and use a small tokenizer, and write a report (90 seconds)",
}
"""Verb -> one line of help. The verb's module (see `module_of`) has `run(arguments: list[str]) -> int`."""

SHORTEST = (
    "encode photo.jpg -o photo.tokens",
    "decode photo.tokens picture.png",
    "reconstruct photo.jpg again.png",
    "train FOLDER --init_from photo-f8 --out RUN",
)
"""The first examples in `smalti --help`."""

USER_ERROR = 2
"""Exit code of a user's mistake; an exception may carry another one as `exit_code`."""
FAULT = 1
"""Exit code of a bug in this package."""
TRACEBACK = "SMALTI_TRACEBACK"
"""Environment variable: if set to anything but 0, every error prints a traceback."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""


def main(arguments: list[str] | None = None) -> int:
    """Run `smalti` with these arguments (None: those of the process) and return its exit code."""
    try:
        if arguments is None:
            os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that a verb starts
            from smalti.cli.process_settings import (
                keep_freed_memory,
                pause_garbage_collection,
                sleep_when_waiting,
            )

            keep_freed_memory()
            sleep_when_waiting()
            pause_garbage_collection()  # resumed in `run_verb`
        code = choose(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `smalti --help | head -1`: the reader has closed the pipe, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def choose(arguments: list[str]) -> int:
    """Handle the calls without a verb, or run the verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"smalti {version('smalti')}")
        return 0
    verb, *rest = arguments
    if verb not in COMMANDS:
        kind = "option" if verb.startswith("-") else "command"
        allowed = ["--help", "--version"] if kind == "option" else list(COMMANDS)
        return complain("smalti", f"unknown {kind} {verb!r}{nearest(verb, allowed)} (see smalti --help)")
    return run_verb(verb, rest)


def run_verb(verb: str, arguments: list[str]) -> int:
    """Import the module of a verb, run it, and turn an error into a message and an exit code."""
    from smalti.cli.missing_file import refuse_missing_file
    from smalti.cli.process_settings import resume_garbage_collection

    try:
        refuse_missing_file(verb, arguments)
        module = importlib.import_module(module_of(verb))
        resume_garbage_collection()
        return module.run(arguments)
    except KeyboardInterrupt:
        print(f"smalti {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise  # an OSError, but not the user's mistake: `main` handles it
    except SystemExit as end:  # argparse ends this way after --help
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:  # the last place that can report it; see TRACEBACK for the details
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            raise
        return report(f"smalti {verb}", error)


def report(prog: str, error: Exception) -> int:
    """Print the error and return the exit code: one line for a user's mistake, two for a bug in this package."""
    if out_of_memory(error):
        return complain(prog, f"not enough memory: {describe(error)}")
    if isinstance(error, ValueError | OSError):
        return complain(prog, describe(error), getattr(error, "exit_code", USER_ERROR))
    complain(prog, f"{type(error).__name__}: {describe(error)}")
    print(f"{prog}: this is a bug in smalti; set {TRACEBACK}=1 to see where it happened", file=sys.stderr)
    return FAULT


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. torch is not imported here, so its errors are recognised by their messages."""
    words = r"out of memory|can't allocate memory|Storage size calculation overflowed"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def module_of(verb: str) -> str:
    """The module of a verb: "train-prior" is in `train_prior.py`."""
    return f"smalti.cli.{verb.replace('-', '_')}"


def overview() -> str:
    """The text of `smalti --help`."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: smalti COMMAND [arguments]",
            "",
            "Discrete image tokenizers: train them, use them, measure them.",
            "",
            "With the tokenizer photo-f8, which comes with the package:",
            *(f"  smalti {line}" for line in SHORTEST),
            "",
            "commands:",
            *(f"  {verb:<{width}}  {line}" for verb, line in COMMANDS.items()),
            "",
            "options:",
            "  --version  print the version",
            "  --help     print this page; after a command: its arguments and common options (--help-all: all options)",
        ]
    )


def complain(prog: str, message: str, code: int = USER_ERROR) -> int:
    """Print one line about an error on stderr and return the exit code."""
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code


def describe(error: Exception) -> str:
    """The message of an exception in one line, with the file name if the system gives one.

    The rooms below name arguments as Python users write them. Here "force=True" becomes "--force", and "codec=FILE"
    becomes "--codec FILE".
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    message = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\b([a-z_]+)=([A-Z]+)\b", r"--\1 \2", re.sub(r"\b([a-z_]+)=True\b", r"--\1", message))


def nearest(name: str, allowed: list[str]) -> str:
    """', did you mean X?' if one of the allowed names is similar, else an empty string."""
    import difflib

    matches = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""
