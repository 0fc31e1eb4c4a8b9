"""Sums, means and random rows over the joined batch of several training processes.

Each process holds some rows; the joined batch is their concatenation in the order of the ranks. Without a process group
of `torch.distributed` there is one process, whose rows are the batch, and each function is the plain computation.

All processes must call these functions in the same order. They get bitwise equal results. The functions are called only
in train mode, so an evaluation in one process never waits for another.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

Value = TypeVar("Value")

REFUSALS = (ValueError, OSError)
"""Errors for the user, sent to all processes. Other errors are bugs: the launcher ends the other processes."""


def process_count() -> int:
    """Number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def sum_over_processes(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Elementwise sum over all processes, without gradient; `x` itself if there is one process."""
    if process_count() == 1:
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def sum_numbers(*own: int) -> list[int]:
    """Sum of each number over all processes, exchanged on the CPU, so that no process waits for a GPU."""
    if process_count() == 1:
        return list(own)
    sums = torch.tensor(own, device="cpu")
    dist.all_reduce(sums, group=host_group())
    return sums.tolist()


def host_group() -> Any:
    """Process group that exchanges CPU tensors; None: the default group does."""
    return None if dist.get_backend() == "gloo" else _gloo_beside(dist.group.WORLD)


@lru_cache(maxsize=1)
def _gloo_beside(default: Any) -> Any:
    """A second group of the same processes, created once per default group."""
    return dist.new_group(backend="gloo")


def mean_over_processes(mean_K: Float[Tensor, " k"], count: int) -> Float[Tensor, " k"]:
    """Mean over the joined batch, given the mean over the `count` rows of this process.

    The gradient is that of this process's own mean. The training loop averages the gradients of all processes, weighted
    by their number of rows. The result is the gradient of the joined mean, without a second exchange.
    """
    if process_count() == 1:
        return mean_K
    share = mean_K.new_full((1,), count)
    *sums, total = sum_over_processes(torch.cat([mean_K.detach() * share, share])).split([mean_K.numel(), 1])
    return sums[0] / total.clamp(min=1) + (mean_K - mean_K.detach())


def joined_size(z_ND: Float[Tensor, "n d"]) -> int:
    """Number of rows of the joined batch."""
    return z_ND.shape[0] if process_count() == 1 else sum_numbers(z_ND.shape[0])[0]


def sample_vectors(
    z_ND: Float[Tensor, "n d"], count: int, passes: Sequence[int] | None = None
) -> Float[Tensor, "count d"]:
    """`count` random rows of the joined batch, distinct if there are enough; the same in all processes.

    Random numbers come from torch's global generator in the first process. They are the ones that a single process with
    the joined batch would draw.

    Args:
        z_ND: the rows of this process.
        count: number of rows to draw.
        passes: number of rows of each forward pass; None: all rows come from one pass. All processes have the same
            number of passes. The joined batch is ordered by pass, then by process.
    """
    if count == 0:
        return z_ND[:0]
    rows = joined_size(z_ND)
    order = [_shared_permutation(rows, z_ND.device) for _ in range(-(-count // rows))]
    return _take(z_ND, torch.cat(order)[:count], passes or [len(z_ND)])


def _shared_permutation(size: int, device: torch.device) -> Int64[Tensor, " size"]:
    if process_rank() == 0:
        order = torch.randperm(size, device=device)
    else:
        order = torch.empty(size, dtype=torch.int64, device=device)
    if process_count() > 1:
        dist.broadcast(order, src=0)
    return order


def _take(z_ND: Tensor, positions_M: Tensor, passes: Sequence[int]) -> Tensor:
    """Rows of the joined batch: each process contributes its own rows, and zeros for the others."""
    if process_count() == 1:
        return z_ND[positions_M]
    rank, world = process_rank(), process_count()
    # Rows of each process in each pass, ordered by pass
    sizes = sum_numbers(*(size if process == rank else 0 for size in passes for process in range(world)))
    rows_MD = z_ND.new_zeros(positions_M.shape[0], z_ND.shape[1])
    for number, part_ND in enumerate(z_ND.detach().split(list(passes))):
        if not len(part_ND):
            continue
        own_M = positions_M - sum(sizes[: number * world + rank])
        here_M = (own_M >= 0) & (own_M < len(part_ND))
        rows_MD = torch.where(here_M.unsqueeze(1), part_ND[own_M.clamp(0, len(part_ND) - 1)], rows_MD)
    return sum_over_processes(rows_MD)


# ---- Python objects, decisions and errors -------------------------------------------------------------------------


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
