"""Programs of `torch.export`: `encoder.pt2` and `decoder.pt2`, which run with PyTorch alone."""

from pathlib import Path

import torch

from smalti.tokenizers import Tokenizer
from smalti.zoo.export.format import Format, write_config
from smalti.zoo.export.graphs import Graphs, graphs_of


def write(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Both programs, and config.json with names, shapes and ranges."""
    graphs = graphs_of(tokenizer)
    save(graphs, folder)
    return graphs.notes()


def save(graphs: Graphs, folder: Path) -> None:
    """Write the files."""
    torch.export.save(graphs.encoder, folder / "encoder.pt2")
    torch.export.save(graphs.decoder, folder / "decoder.pt2")
    write_config(folder, graphs.config)


FORMAT = Format(
    code="PyTorch alone", loading="indices = torch.export.load('OUT/encoder.pt2').module()(image)", write=write
)
