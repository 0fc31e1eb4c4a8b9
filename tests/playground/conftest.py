"""Contains what Gradio leaves behind: warnings when it is imported, and event loops that it never closes."""

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator

import pytest

from smalti.playground.app import application
from smalti.playground.guard import Application
from smalti.playground.opened import Opened


def _collect() -> None:
    """Let go of loops and sockets that nobody closed, without their warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="module")
def build() -> Iterator[Callable[[dict[str, Opened]], Application]]:
    """`application`, with an event loop for Gradio to use."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gradio", reason="Gradio is not installed")

    def quietly(models: dict[str, Opened]) -> Application:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = application(models)
        _collect()
        return made

    _collect()
    yield quietly
    asyncio.set_event_loop(None)
    loop.close()
    _collect()
