"""Ctrl-C between two steps instead of in the middle of one.

A step changes weights, averages and random states one after the other; an exception in between would leave a mixture
that no checkpoint should hold. So the first signal only sets a flag, which the training job looks at after every step.
"""

import signal
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what a cluster sends before it takes a machine back."""

ONE_REQUEST = 1.0
"""Seconds within which signals count as one: a launcher passes on the Ctrl-C that its processes got as well."""


class StopRequest:
    """Context in which the first SIGINT or SIGTERM is remembered; a later one interrupts at once.

    >>> with StopRequest() as stop:
    ...     for batch in batches:
    ...         step(batch)
    ...         if stop.requested:
    ...             break

    Python delivers signals to the main thread alone; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._since > ONE_REQUEST:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
