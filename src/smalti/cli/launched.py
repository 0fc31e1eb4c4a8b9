"""Shared by the training commands: they may run as one of several processes of torchrun or accelerate launch."""

from collections.abc import Callable

from smalti.cli import USER_ERROR
from smalti.training import launched_rank, leave_processes


def in_launch(work: Callable[[bool], int]) -> int:
    """Do the work of a command in one of the processes, then leave the process group; returns the exit code.

    Args:
        work: is told whether this process is the first, which alone may print; returns the exit code.

    Raises:
        ValueError, OSError: those of `work`, in the first process only: one message is enough for all processes.
    """
    first = launched_rank() == 0
    try:
        return work(first)
    except (ValueError, OSError) as error:
        if first:
            raise
        return getattr(error, "exit_code", USER_ERROR)
    finally:
        leave_processes()
