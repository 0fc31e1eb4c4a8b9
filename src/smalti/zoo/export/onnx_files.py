"""ONNX: `encoder.onnx` and `decoder.onnx`, for onnxruntime and other engines. Needs the extra `smalti[onnx]`."""

from importlib.util import find_spec
from pathlib import Path

import torch

from smalti.tokenizers import Tokenizer
from smalti.zoo.export.format import Format, write_config
from smalti.zoo.export.graphs import Graphs, graphs_of, without_remarks

INSTALL = "pip install 'smalti[onnx]'"


def write(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Both graphs, and config.json with names, shapes and ranges."""
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise ValueError(f"format onnx: {package} is not installed; run {INSTALL}")
    graphs = graphs_of(tokenizer)
    save(graphs, folder)
    return graphs.notes()


@without_remarks()
def save(graphs: Graphs, folder: Path) -> None:
    """Write the files, weights included."""
    halves = (
        ("encoder", graphs.encoder, ("image",), graphs.names),
        ("decoder", graphs.decoder, graphs.names, ("image",)),
    )
    for name, program, inputs, outputs in halves:
        axes = tuple(graphs.axes[each] for each in inputs)
        torch.onnx.export(
            program,
            (),
            str(folder / f"{name}.onnx"),
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=axes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    write_config(folder, graphs.config)


FORMAT = Format(
    code="ONNX engines",
    loading="indices = onnxruntime.InferenceSession('OUT/encoder.onnx').run(None, {'image': image})",
    write=write,
)
