"""Tokenizers as graphs: torch.export, ONNX and torch.jit.trace give the tokens and images that the tokenizer gives.

In a process of their own, because the tests' import hook cannot be exported, and all in one, because torch's compiler
takes long to import.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from smalti.ops import proportional_grids
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo.export.graphs import area_interpolation, sides, sides_in_graph

ROOT = Path(__file__).parent.parent.parent

COMMON = """
import json, sys, traceback, warnings
from pathlib import Path
import torch
from every_quantizer import CASES
from smalti.cli import main
from smalti.quantizers import VectorQuantizer, quantizer_from_config
from smalti.tokenizers import SimpleVQVAE, TiTok, VQGAN
from smalti.zoo.export import onnx_files, torch_export
from smalti.zoo.export.graphs import graphs_of, sides

OUT = Path(sys.argv[1])

class Encoding(torch.nn.Module):
    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image):
        return self.tokenizer.encode(image).indices

def tokenizer_of(name):
    torch.manual_seed(0)
    quantizer = quantizer_from_config(CASES[name])
    size = {"hidden_dim": 8, "num_stages": 1, "num_res_blocks": 0, "norm": "none"}
    return spread(SimpleVQVAE(quantizer.num_embeddings, quantizer.embedding_dim, quantizer=quantizer, **size))

def spread(tokenizer):
    for module in tokenizer.quantizer.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.3)
    return tokenizer.eval()

def picture(*size, seed=1):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1

def same(found, expected, what):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(torch.as_tensor(one), other), what

def check(tokenizer, encode, decode, sizes, what):
    for size in sizes:
        image = picture(*size)
        tokens = tokenizer.encode(image)
        same(encode(image), tokens.indices, (what, size))
        found = torch.as_tensor(decode(*tokens.indices))[:, :, : size[2], : size[3]]
        torch.testing.assert_close(found, tokenizer.decode(tokens), rtol=0, atol=1e-4)

def folder_of(name):
    folder = OUT / name.replace(" ", "-")
    folder.mkdir()
    return folder

SIZES = {"multi-scale": ((1, 3, 6, 9), (3, 3, 10, 5))}  # those of three to five cells
ANY = ((1, 3, 23, 30), (3, 3, 3, 40))
tokenizers = {}
for name in ("residual fsq", "multi-scale"):
    tokenizers[name] = tokenizer_of(name)
sizes = {"widths": [32, 32], "num_res_blocks": 1, "attention_levels": [], "mid": ["attention"]}
tokenizers["vector"] = spread(VQGAN(sizes, VectorQuantizer(24, 8)))
graphs = {name: graphs_of(tokenizer) for name, tokenizer in tokenizers.items()}
"""

EXPORTED = """
for name, tokenizer in tokenizers.items():
    folder = folder_of(f"pt2 {name}")
    torch_export.save(graphs[name], folder)
    encoder, decoder = (torch.export.load(folder / f"{half}.pt2") for half in ("encoder", "decoder"))
    assert not any("smalti" in str(node.target) for node in encoder.graph.nodes), name
    encode = encoder.module()
    check(tokenizer, encode, decoder.module(), SIZES.get(name, ANY), name)
assert sides(tokenizers["multi-scale"]) == (5, 10, 4)
try:
    torch.export.load(OUT / "pt2-multi-scale/encoder.pt2").module()(picture(1, 3, 12, 12))
except Exception:
    pass
else:
    raise AssertionError("an image of another pattern of scales")
"""

ONNX = """
import onnxruntime

def run(path):
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: session.run(None, {n: value.numpy() for n, value in zip(names, inputs, strict=True)})

for name, tokenizer in tokenizers.items():
    folder = folder_of(f"onnx {name}")
    onnx_files.save(graphs[name], folder)
    decode = run(folder / "decoder.onnx")
    first = lambda *indices: decode(*indices)[0]
    check(tokenizer, run(folder / "encoder.onnx"), first, SIZES.get(name, ANY), name)
config = json.loads((OUT / "onnx-multi-scale/config.json").read_text())
assert config["height"] == [5, 10]
session = onnxruntime.InferenceSession(OUT / "onnx-multi-scale/encoder.onnx")
(image,) = session.get_inputs()
assert (image.name, image.shape) == ("image", config["image"]["shape"]), image.shape
assert [each.name for each in session.get_outputs()] == [each["name"] for each in config["indices"]]
"""

TRACED = """
warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes become constants: a trace is for one size
for name in CASES:
    tokenizer = tokenizer_of(name)
    trace = torch.jit.trace(Encoding(tokenizer), (picture(2, 3, 16, 16),), check_trace=False)
    image = picture(2, 3, 16, 16, seed=2)
    same(trace(image), tokenizer.encode(image).indices, name)
"""

COMMAND = """
sizes = {"width": 32, "layers": 1, "num_heads": 1}
tokenizer = spread(TiTok(VectorQuantizer(24, 8), sizes, image_size=16, num_latent_tokens=4))
tokenizer.save_pretrained(OUT / "model")
assert main(["export", str(OUT / "model"), str(OUT / "out"), "--format", "torch-export"]) == 0
names = sorted(path.name for path in (OUT / "out").iterdir())
assert names == ["README.md", "config.json", "decoder.pt2", "encoder.pt2"], names
encoder, decoder = (torch.export.load(OUT / f"out/{half}.pt2").module() for half in ("encoder", "decoder"))
check(tokenizer, encoder, decoder, ((1, 3, 16, 16),), "TiTok")
"""

EVERY_PART = """
faults = {}
for name, program in json.load(sys.stdin).items():
    try:
        with warnings.catch_warnings():
            exec(program, dict(globals()))
    except Exception:
        faults[name] = traceback.format_exc()
print(json.dumps(faults))
"""

HAS_ONNX = all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))
PARTS = {"exported": EXPORTED, "traced": TRACED, "command": COMMAND, **({"onnx": ONNX} if HAS_ONNX else {})}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each part."""
    result = subprocess.run(
        [sys.executable, "-c", COMMON + EVERY_PART, str(tmp_path_factory.mktemp("graphs"))],
        input=json.dumps(PARTS),
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_programs_serve_batches_and_images_of_other_sizes_without_this_package(faults: dict[str, str]) -> None:
    assert "exported" not in faults, faults["exported"]


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra smalti[onnx]")
def test_onnx_gives_the_same_tokens_and_images_at_other_sizes(faults: dict[str, str]) -> None:
    assert "onnx" not in faults, faults["onnx"]


def test_a_trace_searches(faults: dict[str, str]) -> None:
    assert "traced" not in faults, faults["traced"]


def test_the_command_writes_programs(faults: dict[str, str]) -> None:
    assert "command" not in faults, faults["command"]


@pytest.mark.parametrize("grid", [(1, 1), (3, 8), (5, 7), (6, 4), (12, 9)])
def test_area_interpolation_by_matrix_products(grid: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 12, 9)
    torch.testing.assert_close(area_interpolation(x, grid), F.interpolate(x, size=grid, mode="area"))


def test_sides_in_a_graph_are_halves_to_even() -> None:
    for last in (8, 16):  # powers of two: no rounding in p / q
        for each in range(2, last):
            for side in range(1, 4 * last):
                assert sides_in_graph((each, last), side) == [round(each * side / last), side]


@pytest.mark.parametrize(
    ("patch_nums", "low", "high"),
    [((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 12, 23), ((1, 2, 4), 3, 5), ((2, 4), 3, 32), ((2, 28, 40), 30, 44)],
)
def test_a_graph_ends_where_its_scales_would_not_be_the_tokenizers(
    patch_nums: tuple[int, ...], low: int, high: int
) -> None:
    tokenizer = SimpleVQVAE(8, 4, 4, num_stages=1, patch_nums=patch_nums, num_codebooks=1)
    assert sides(tokenizer) == (2 * low - 1, 2 * high, patch_nums[-1])
    for side in range(low, high + 1):
        expected = proportional_grids(patch_nums, side, side)
        assert [(n, n) for n in sides_in_graph(patch_nums, side)] == list(expected)
