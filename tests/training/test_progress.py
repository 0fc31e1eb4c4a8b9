"""What is printed, to a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from smalti.training import Silent, console_reporter
from smalti.training import progress as module
from smalti.training.progress import Bar, Lines

LINE = {"step": 10, "loss": 0.25, "psnr": 20.125, "usage": 0.5, "images_per_second": 123.4}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_lines_come_at_most_every_ten_seconds_and_the_last_always(clock):
    stream = io.StringIO()
    lines = console_reporter(stream)
    assert isinstance(lines, Lines)
    lines.note("hello")
    lines.start(100, 0)
    for seconds, step in ((5, 1), (9, 10), (16, 20), (17, 41)):
        clock[0] = 100.0 + seconds
        lines.step(step)
        lines.log({**LINE, "step": step})
    lines.close()
    printed = stream.getvalue().splitlines()
    assert printed[0] == "hello"
    assert [line.split()[1] for line in printed[1:]] == ["1/100", "20/100", "41/100"]
    assert "left" not in printed[1]
    # 40 steps in 12 s since the first line: 59 more in 17.7 s
    assert printed[-1] == "step 41/100  loss 0.2500  PSNR 20.12 dB  usage 50%  123 images/s  0:00:18 left"


def test_remaining_time_counts_from_where_the_run_was_resumed(clock):
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start(100, 80)
    for step in (81, 86):
        clock[0] += 10
        lines.log({**LINE, "step": step})
    assert stream.getvalue().splitlines()[-1].endswith("0:00:28 left")


def test_a_terminal_gets_a_bar_with_all_numbers():
    stream = Terminal()
    bar = console_reporter(stream)
    assert isinstance(bar, Bar)
    bar._progress.live.console = Console(file=stream, width=120, force_terminal=True)
    bar.note("going [on]")
    bar.start(100, 10)
    bar.log(LINE)
    bar.step(11)
    bar.close()
    text = stream.getvalue()
    for part in ("going [on]", "11/100", "loss 0.2500", "PSNR 20.12 dB", "usage 50%", "123 images/s", "left"):
        assert part in text, part


def test_exact_reconstructions_have_no_decibels():
    assert "PSNR exact" in module.summary({**LINE, "psnr": None})


def test_silent_says_nothing(capsys):
    silent = Silent()
    silent.start(1, 0)
    silent.step(1)
    silent.log(LINE)
    silent.note("x")
    silent.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725.4, "1:02:05"), (360000, "100:00:00")]
)
def test_durations(seconds, text):
    assert module.duration(seconds) == text
