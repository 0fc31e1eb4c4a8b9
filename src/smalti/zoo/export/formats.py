"""All formats of `smalti export` by name."""

from smalti.zoo.export import diffusers_vq, llamagen, onnx_files, taming, torch_export, var
from smalti.zoo.export.format import Format

FORMATS: dict[str, Format] = {
    "var": var.FORMAT,
    "taming": taming.FORMAT,
    "llamagen": llamagen.FORMAT,
    "diffusers": diffusers_vq.FORMAT,
    "onnx": onnx_files.FORMAT,
    "torch-export": torch_export.FORMAT,
}
