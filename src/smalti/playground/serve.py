"""Opens the tokenizers and serves the page until Ctrl-C."""

import logging
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from smalti.jobs.sample import TOKENIZER
from smalti.ops.device import find_device
from smalti.playground.app import application
from smalti.playground.config import FIRST_PORT, PlayConfig
from smalti.playground.opened import Opened
from smalti.zoo import BOXED, filled, open_prior, open_tokenizer

LOOPBACK = "127.0.0.1"
PORTS_TRIED = 100


def play(config: PlayConfig, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve the playground until it is interrupted.

    Args:
        config: which models, where.
        on_ready: called with the address of the page when it can be opened.

    Raises:
        FileNotFoundError: no such tokenizer or prior.
        ValueError: a folder without a tokenizer; Gradio is not installed.
        OSError: the port is in use.
    """
    models = open_models(config)
    served = application(models, guarded=not config.host)
    import uvicorn  # comes with Gradio, whose absence `application` reports

    listener = listen(config.host or LOOPBACK, config.port)
    shown = LOOPBACK if config.host in ("", "0.0.0.0") else config.host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    if on_ready is not None:
        on_ready(address)
    if not config.no_browser:
        webbrowser.open(address)
    settings = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=1, ws="none")  # type: ignore[arg-type]
    server = uvicorn.Server(settings)
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)  # open tabs are no error
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        server.run(sockets=[listener])


def open_models(config: PlayConfig) -> dict[str, Opened]:
    """The tokenizers of the page by name, the prior with the first of them.

    Without named tokenizers the first is that in the folder of the prior, if there is one.
    """
    device = find_device(config.device)
    names = config.models or tuple(name for name in BOXED if filled(name))
    if config.prior and not config.models and Path(config.prior, TOKENIZER).is_dir():
        names = (f"{config.prior}/{TOKENIZER}", *names)
    if not names:
        raise ValueError("models: got none, and this installation has no built-in tokenizer; name one")
    models = {name: Opened(name, open_tokenizer(name).to(device)) for name in names}
    if config.prior:
        first = models[names[0]]
        first.prior = open_prior(config.prior, first.tokenizer, **config.prior_options()).to(device)
    return models


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; with port 0 on the first free port from `FIRST_PORT` on.

    Raises:
        OSError: the port is in use, or this machine has no such address.
    """
    ports = [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED)
    problem: OSError | None = None
    for candidate in ports:
        try:
            return socket.create_server((host, candidate))
        except OSError as error:
            problem = error
    raise OSError(f"port: got {ports[-1]} on {host}, expected a free one ({problem})") from problem
