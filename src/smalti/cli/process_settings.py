"""Settings of the process that the command line changes and an import never does.

They concern garbage collection during imports, and the C library and the thread library under torch. The libraries
have no Python interface: mallopt is called through ctypes, and an environment variable is set before torch is imported.
"""

import ctypes
import gc
import os
import sys


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees, so that the next batch can use it.

    By default glibc returns large blocks to the system, which then clears every page again for the next batch. Encoding
    on a CPU took up to 1.7 times as long because of this, training 1.2 times. With this setting the peak memory of
    training is up to 3 % higher, that of `smalti tokenize` a fifth higher (0.4 to 0.5 GB). If the user has set one of
    glibc's MALLOC_ variables, nothing is changed. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        trim_threshold, mmap_threshold, never = -1, -3, 2**30  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, never)
        mallopt(mmap_threshold, never)


def pause_garbage_collection() -> None:
    """Collect no garbage until `resume_garbage_collection`: importing torch and this package makes hardly any.

    Searching the many objects of the modules again and again takes up to half a second.
    """
    gc.disable()


def resume_garbage_collection() -> None:
    """Collect garbage again if it was paused, but never search the objects that exist now: modules stay."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def sleep_when_waiting() -> None:
    """Make waiting threads of torch sleep after about 20 microseconds of spinning, instead of 5 milliseconds.

    A spinning thread occupies a core. When another process needs a core too, the thread that is waited for may not get
    one: a training step of 20 ms then took 670 ms, and 28 ms with this setting. libgomp reads the variable when torch
    is imported. libgomp uses the same value by itself when it has more threads than cores, but it does not see other
    processes. If the user has set one of OpenMP's variables for waiting, nothing is changed.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"
