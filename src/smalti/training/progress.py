"""Progress reports of a run: a progress bar on a terminal, otherwise lines of text, or nothing.

A job gets one of the three reporters and never prints itself.
"""

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import IO, Any, Protocol, cast, final, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@runtime_checkable
class Stream(Protocol):
    """The methods of a text stream, such as stderr, that a reporter needs."""

    def write(self, text: str, /) -> int:
        """Write some text."""
        ...

    def flush(self) -> None:
        """Flush the stream."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        ...


class Reporter(ABC):
    """Receives the progress of a run. The job calls `start`, then `step` and `log`, and always `close`."""

    @abstractmethod
    def start(self, steps: int, done: int) -> None:
        """A run of `steps` steps begins; `done` of them are already complete."""

    @abstractmethod
    def step(self, step: int) -> None:
        """Step number `step` is complete."""

    @abstractmethod
    def log(self, line: Mapping[str, Any]) -> None:
        """A log line: the numbers of the latest step."""

    @abstractmethod
    def note(self, text: str) -> None:
        """A message on its own line."""

    @abstractmethod
    def close(self) -> None:
        """The run ends, successfully or not."""


@final
class Silent(Reporter):
    """Prints nothing: for tests and programs."""

    def start(self, steps: int, done: int) -> None: ...
    def step(self, step: int) -> None: ...
    def log(self, line: Mapping[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


@final
class Bar(Reporter):
    """A progress bar with loss, PSNR, usage, images/s and remaining time."""

    def __init__(self, stream: Stream):
        columns = (
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._progress = Progress(*columns, console=Console(file=cast(IO[str], stream)), speed_estimate_period=60.0)

    def start(self, steps: int, done: int) -> None:
        self._task = self._progress.add_task("", total=steps, completed=done, numbers="")
        self._progress.start()

    def step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def log(self, line: Mapping[str, Any]) -> None:
        self._progress.update(self._task, numbers=summary(line))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


@final
class Lines(Reporter):
    """A line of text at the first logged step, then at most one per ten seconds, and one at the end."""

    def __init__(self, stream: Stream):
        self._stream = stream
        self._held = ""

    def start(self, steps: int, done: int) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None
        self._printed = -math.inf

    def step(self, step: int) -> None: ...

    def log(self, line: Mapping[str, Any]) -> None:
        now, step = time.monotonic(), line["step"]
        self._held = f"step {step}/{self._steps}  {summary(line)}"
        if self._first is None:  # no estimate from the first step, which includes start-up of codebook and workers
            self._first = (step, now)
        else:
            left = (now - self._first[1]) / (step - self._first[0]) * (self._steps - step)
            self._held += f"  {duration(left)} left"
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            self._release()

    def note(self, text: str) -> None:
        self._release()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._held:
            print(self._held, file=self._stream, flush=True)
        self._held = ""


def console_reporter(stream: Stream | None = None) -> Reporter:
    """A bar if the stream (default: stderr) is a terminal, lines otherwise."""
    stream = sys.stderr if stream is None else stream
    return Bar(stream) if stream.isatty() else Lines(stream)


def summary(line: Mapping[str, Any]) -> str:
    """The numbers of a step in short: for a tokenizer PSNR and usage, for a prior bits per token."""
    parts = [f"loss {line['loss']:.4f}"]
    if "psnr" in line:
        parts.append("PSNR exact" if line["psnr"] is None else f"PSNR {line['psnr']:.2f} dB")
        parts.append(f"usage {line['usage']:.0%}")
    if "bits_per_token" in line:
        parts.append(f"{line['bits_per_token']:.3f} bits per token")
    return "  ".join([*parts, f"{line['images_per_second']:.0f} images/s"])


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss.

    >>> duration(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
