"""An interpreter that has imported torch and smalti once, without the type checks of the tests.

Each program runs in processes forked from it: torch, the larger part of a start, is not imported again. Several
processes of a program get the environment that torchrun would give them. `tests/jobs/test_many_processes.py` starts
`torchrun` itself and `accelerate launch`.

    python clean_interpreter.py FOLDER

reads a line of JSON for each program and answers with its exit code. FOLDER/out and FOLDER/err hold what it printed.
"""

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path


class CleanInterpreter:
    """Use it by the fixture `clean`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def run(self, *command: str | Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
        """Run a program: a script, `-c` and code, `-m` and a module, or `smalti`; each with its arguments."""
        words = [str(word) for word in command]
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([processes, words]), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(words, code, out, err)

    def train_together(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program in two processes, and fail where one of them fails."""
        done = self.run(*command, processes=2)
        assert done.returncode == 0, done.stderr
        return done

    def close(self) -> None:
        """End the interpreter."""
        if self.process is not None:
            self.process.communicate()


def run_forked(command: list[str], processes: int) -> int:
    """The exit code of the first process that fails, 0 if none does. The others end with it."""
    for name in ("out", "err"):
        Path(name).write_bytes(b"")
    port = free_port()
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=as_rank, args=(rank, processes, port, command)) for rank in range(processes)]
    for process in running:
        process.start()
    while running:
        wait([process.sentinel for process in running])
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode:
                for other in running:
                    other.join(5)  # it may be about to say why
                    other.kill()
                return process.exitcode
    return 0


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def as_rank(rank: int, processes: int, port: str, command: list[str]) -> None:
    """Be one of the processes of a program."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sys.argv = command
    if command[0] == "smalti":
        from smalti.cli import main

        sys.exit(main())
    if command[0] == "-c":
        exec(sys.argv.pop(1), globals())
    elif command[0] == "-m":
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    os.chdir(sys.argv[1])

    import torch._dynamo  # which torch itself would import at the first optimizer

    import smalti.training  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        number, program = json.loads(line)
        print(run_forked(program, number), flush=True)
