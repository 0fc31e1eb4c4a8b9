"""Joint decisions of several training processes, so that no process continues after another has stopped.

The counterpart of `ops/processes.py` for decisions, errors and Python objects. Without a process group every function
acts locally: it runs the task or raises the error. All processes must call these functions in the same order.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from smalti.ops.processes import host_group, process_count, process_rank, sum_numbers

Value = TypeVar("Value")

REFUSALS = (ValueError, OSError)
"""Errors for the user, sent to all processes. Other errors are bugs: the launcher ends the other processes."""


def all_gather(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks."""
    if process_count() == 1:
        return [value]
    values: list[Value | None] = [None] * process_count()
    dist.all_gather_object(values, value, group=host_group())
    return values  # type: ignore[return-value]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in at least one process."""
    return sum_numbers(int(flag)) != [0]


def raise_together(error: Exception | None) -> None:
    """If processes have errors, raise in all processes the error of the lowest rank."""
    for raised in all_gather(error):
        if raised is not None:
            raise raised


def in_all(task: Callable[[], Value]) -> Value:
    """Run a task in every process; an error in one process is raised in all."""
    try:
        result, error = task(), None
    except REFUSALS as refused:
        result, error = None, refused
    raise_together(error)
    return result  # type: ignore[return-value]


def on_main(task: Callable[[], Value]) -> Value:
    """Run a task in the first process only; all processes get its result or error."""
    if process_count() == 1:
        return task()
    outcome: list[object] = [None, None]
    if process_rank() == 0:
        try:
            outcome[0] = task()
        except REFUSALS as refused:
            outcome[1] = refused
    dist.broadcast_object_list(outcome, src=0, group=host_group())
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]
