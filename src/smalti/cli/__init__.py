"""The command line, `smalti VERB ...`: this module only picks the verb, each verb is one module beside it.

Nothing heavy is imported here: a verb's module, and with it torch, is imported when that verb is chosen, so that
`smalti --help` answers at once. An error of the user ends as one line and exit code 2, a fault of this package as two
lines and exit code 1; a traceback is for those who ask for it (`SMALTI_TRACEBACK=1`).

Nothing in the current directory is ever imported, neither here nor in a process that a command starts: it may be a
folder of downloads.
"""

# What is imported here and in `smalti/__init__.py` stands before `cli/__main__.py` can clean the path of `python -m`:
# modules that Python itself has loaded by then, and no others.
import importlib
import os
import re
import sys

COMMANDS = {
    "train": "train a tokenizer on a folder of images",
    "eval": "measure a tokenizer over a whole set of images: PSNR, SSIM, LPIPS, rFID, bits, codebook usage",
    "compare": "measure several tokenizers, and JPEG and WebP at their price, on the same images",
    "encode": "turn images into token files",
    "decode": "turn token files back into images",
    "reconstruct": "pass one image through a tokenizer and back, and print the PSNR",
    "tokenize": "turn a set of images into a token data set, once, to train on it many times",
    "tokens": "verify a token data set, say what it holds, decode one of its rows",
    "train-codec": "train the codec of a tokenizer, which codes tokens by those around them",
    "train-prior": "train a prior, a generator of tokens, on a token data set",
    "sample": "draw images from a trained prior, or let it change a part of a photograph",
    "eval-samples": "measure drawn images against those that they imitate: gFID, KID, Inception Score",
    "import": "turn a published tokenizer's checkpoint into a folder that every other command takes",
    "demo": "use photo-f8, then train, evaluate and use a small tokenizer in two minutes, and leave a report",
}
"""Verb -> one line of help. Its module, see `module_of`, holds `run(arguments: list[str]) -> int`."""

SHORTEST = (
    "encode photo.jpg -o photo.tokens",
    "decode photo.tokens picture.png",
    "reconstruct photo.jpg again.png",
    "train FOLDER --init_from photo-f8 --out RUN",
)
"""What to try first."""

USER_ERROR = 2
"""Exit code of a mistake of the user; an exception may carry another one as `exit_code`."""
FAULT = 1
"""Exit code of a fault of this package."""
TRACEBACK = "SMALTI_TRACEBACK"
"""Environment variable: set to anything but 0, every error ends as a traceback."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""


def main(arguments: list[str] | None = None) -> int:
    """Run `smalti` with these arguments (those of the process if None) and return its exit code."""
    try:
        if arguments is None:
            os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that a verb starts
            keep_freed_memory()
            sleep_when_waiting()
        code = choose(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `smalti --help | head -1`: the reader left, which is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for the next batch to use.

    By default glibc gives large blocks back to the system, which then clears every page of the next batch's features
    anew; encoding on a CPU took up to 1.7 times as long for it, training 1.2 times. Kept, it makes the peak of training
    up to 3 % higher, that of `smalti tokenize` a fifth (0.4 to 0.5 GB). Who sets glibc's MALLOC_ variables decides for
    himself; other C libraries are left alone.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        trim_threshold, mmap_threshold, never = -1, -3, 2**30  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, never)
        mallopt(mmap_threshold, never)


def sleep_when_waiting() -> None:
    """Have the threads of torch that wait for each other sleep after some 20 microseconds, instead of 5 milliseconds.

    A thread that spins keeps its core from the one that it waits for, as soon as another process wants a core as well:
    a training step of 20 ms then took 670 ms, with this 28. libgomp reads the variable when torch is imported. Its own
    value where it knows of too few cores is the same, but it cannot know of other processes. Who sets one of
    OpenMP's variables for waiting decides for himself.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def choose(arguments: list[str]) -> int:
    """Answer what concerns no verb, or run the verb."""
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
    """Import the module of a verb, run it, and turn what goes wrong into one line and an exit code."""
    from smalti.cli.missing_file import refuse_missing_file

    try:
        refuse_missing_file(verb, arguments)
        return importlib.import_module(module_of(verb)).run(arguments)
    except KeyboardInterrupt:
        print(f"smalti {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise  # an OSError, but not the user's mistake: `main` knows what to do
    except SystemExit as end:  # argparse ends this way after --help
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:  # the last place that can say it in words; nothing is lost, see TRACEBACK
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            raise
        return report(f"smalti {verb}", error)


def report(prog: str, error: Exception) -> int:
    """Print what went wrong, one line of the user's mistakes and two of ours, and return the exit code."""
    if out_of_memory(error):
        return complain(prog, f"not enough memory: {describe(error)}")
    if isinstance(error, ValueError | OSError):
        return complain(prog, describe(error), getattr(error, "exit_code", USER_ERROR))
    complain(prog, f"{type(error).__name__}: {describe(error)}")
    print(f"{prog}: this is a fault of smalti; {TRACEBACK}=1 shows where it happened", file=sys.stderr)
    return FAULT


def out_of_memory(error: Exception) -> bool:
    """Whether a size was asked for that no memory holds; torch, which is not imported here, says so in its messages."""
    words = r"out of memory|can't allocate memory|Storage size calculation overflowed"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def module_of(verb: str) -> str:
    """The module of a verb: "train-prior" lives in `train_prior.py`."""
    return f"smalti.cli.{verb.replace('-', '_')}"


def overview() -> str:
    """What `smalti --help` prints."""
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
            "  --help     print this; after a command, print its arguments and common options, with --help-all all",
        ]
    )


def complain(prog: str, message: str, code: int = USER_ERROR) -> int:
    """Print one line about an error on stderr and return the exit code."""
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code


def describe(error: Exception) -> str:
    """The message of an exception in one line, with the file name where the system gives it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, allowed: list[str]) -> str:
    """', did you mean X?' if one of the allowed names resembles this one, else nothing."""
    import difflib

    matches = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""
