"""Two processes that train together, forked from one interpreter: torch, the larger part of a start, is imported once.

    python ranks.py SCRIPT ARGUMENTS ...

runs SCRIPT as each rank, in the environment that torchrun would give it. `torchrun` itself and `accelerate launch` are
started by `tests/jobs/test_many_processes.py`.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path

WORLD = 2


def run_ranks(script: Path, *arguments: str) -> None:
    """Run a script in `WORLD` processes, and fail as the first of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def as_rank(rank: int, script: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    import torch._dynamo  # which torch itself would import at the first optimizer

    import smalti.training  # noqa: F401

    torch.set_num_threads(1)
    sys.argv, sys.path[0] = sys.argv[1:], str(Path(sys.argv[1]).parent)
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=as_rank, args=(rank, sys.argv[0]), daemon=True) for rank in range(WORLD)]
    for process in running:
        process.start()
    while running:
        wait([process.sentinel for process in running])
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode:  # the others wait for it in vain, and end with this process
                sys.exit(process.exitcode)
