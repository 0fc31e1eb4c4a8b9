"""Closes the event loop that Gradio opens while it builds a page: left open, it would be a warning in a later test."""

import asyncio
import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def gradio_loop() -> Iterator[None]:
    """An event loop for Gradio to use, closed at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those that Gradio and Starlette raise when they are imported
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        pytest.importorskip("gradio", reason="Gradio is not installed")
        yield
        asyncio.set_event_loop(None)
        loop.close()
        gc.collect()
