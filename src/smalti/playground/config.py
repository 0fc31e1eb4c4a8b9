"""Settings of `smalti play`."""

from dataclasses import dataclass

from smalti.checks import between, expect
from smalti.zoo import PriorOptions

FIRST_PORT = 7860
"""The port that is tried first if none is given."""


@dataclass(frozen=True)
class PlayConfig(PriorOptions):
    """Look at the tokens of a picture and change them, on a web page of this machine."""

    models: tuple[str, ...] = ()
    """Tokenizers: built-in names, folders with a saved model, published checkpoints, or names on the Hugging Face hub;
    none: photo-f8 and photo-pyramid."""
    prior: str = ""
    """Prior of the first tokenizer, from smalti train-prior or published, to draw tokens again; without tokenizers on
    the command line, that in the prior's folder comes first. Empty: none."""
    host: str = ""
    """Address to listen on. Empty: 127.0.0.1, for this machine alone, and requests of other web sites are refused. With
    an address such as 0.0.0.0 other machines have access, and no request is refused."""
    port: int = 0
    """Port to listen on; 0: the first free one from 7860 on."""
    no_browser: bool = False
    """Do not open the page in a browser."""
    device: str = "auto"
    """Device to compute on: "cpu", "cuda", ...; "auto": cuda if available."""

    def __post_init__(self) -> None:
        between(0, 65535, port=self.port)
        for name, value in self.prior_options().items():
            expect(bool(self.prior), name, value, "null without a prior")
