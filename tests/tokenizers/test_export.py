"""Tokenizers as graphs: torch.export, torch.jit.trace and ONNX give the tokens that the tokenizer gives.

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

ROOT = Path(__file__).parent.parent.parent

COMMON = """
import json, sys, traceback, warnings
import torch
from every_quantizer import CASES
from smalti.quantizers import VectorQuantizer, quantizer_from_config
from smalti.tokenizers import SimpleVQVAE, TiTok, Tokens, VQGAN

class Encoding(torch.nn.Module):
    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image):
        return self.tokenizer.encode(image).indices

class Decoding(Encoding):
    def forward(self, *indices):
        size = tuple(side * self.tokenizer.stride for side in indices[-1].shape[1:3])
        return self.tokenizer.decode(Tokens(indices, size, self.tokenizer.vocab_size))

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

def picture(*size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1

def same(found, expected, what):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(torch.as_tensor(one), other), what
"""

EXPORTED = """
ANY = torch.export.Dim.AUTO

def check(tokenizer, what):
    program = torch.export.export(
        Encoding(tokenizer), (picture(2, 3, 16, 16),), dynamic_shapes={"image": {0: ANY, 2: ANY, 3: ANY}}
    ).module()
    for size in ((2, 3, 16, 16), (1, 3, 27, 30)):
        image = picture(*size, seed=1)
        same(program(image), tokenizer.encode(image).indices, (what, size))
    return image

for name in ("lfq", "residual of grouped", "multi-scale"):
    tokenizer = tokenizer_of(name)
    indices = tokenizer.encode(check(tokenizer, name)).indices
    decoding = torch.export.export(Decoding(tokenizer), indices).module()
    assert torch.equal(decoding(*indices), Decoding(tokenizer)(*indices)), name
sizes = {"width": 32, "layers": 1, "num_heads": 1}
for tokenizer in (
    VQGAN({"widths": [32, 32], "num_res_blocks": 1}, VectorQuantizer(24, 8)),
    TiTok(VectorQuantizer(24, 8), sizes, image_size=16, num_latent_tokens=4),
):
    image = picture(2, 3, 16, 16)
    program = torch.export.export(Encoding(spread(tokenizer)), (image,), dynamic_shapes={"image": {0: ANY}}).module()
    same(program(image[:1]), tokenizer.encode(image[:1]).indices, type(tokenizer))
"""

TRACED = """
warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes become constants: a trace is for one size
for name in CASES:
    tokenizer = tokenizer_of(name)
    trace = torch.jit.trace(Encoding(tokenizer), (picture(2, 3, 16, 16),), check_trace=False)
    image = picture(2, 3, 16, 16, seed=1)
    same(trace(image), tokenizer.encode(image).indices, name)
"""

ONNX = """
import onnxruntime

def run(path, *inputs):
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})

ANY_SIZE = {"image": {0: "batch", 2: "height", 3: "width"}}
for name, shapes in (("vector", ANY_SIZE), ("lfq", None), ("multi-scale", None)):
    tokenizer, image = tokenizer_of(name), picture(2, 3, 16, 16)
    torch.onnx.export(
        Encoding(tokenizer), (image,), f"{sys.argv[1]}/e.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    for size in ((2, 3, 16, 16), (1, 3, 23, 30)) if shapes else ((2, 3, 16, 16),):
        image = picture(*size, seed=1)
        same(run(f"{sys.argv[1]}/e.onnx", image), tokenizer.encode(image).indices, (name, size))
tokenizer = tokenizer_of("vector")
indices = tokenizer.encode(image).indices
torch.onnx.export(Decoding(tokenizer), indices, f"{sys.argv[1]}/d.onnx", dynamo=True, verbose=False)
(decoded,) = run(f"{sys.argv[1]}/d.onnx", *indices)
torch.testing.assert_close(torch.as_tensor(decoded), Decoding(tokenizer)(*indices), rtol=1e-4, atol=1e-4)

warnings.simplefilter("ignore")  # the older exporter is deprecated, and traces
tokenizer, image = tokenizer_of("residual"), picture(2, 3, 16, 16)
torch.onnx.export(Encoding(tokenizer), (image,), f"{sys.argv[1]}/t.onnx", dynamo=False)
same(run(f"{sys.argv[1]}/t.onnx", image), tokenizer.encode(image).indices, "older exporter")
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
PARTS = {"exported": EXPORTED, "traced": TRACED, **({"onnx": ONNX} if HAS_ONNX else {})}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each part."""
    result = subprocess.run(
        [sys.executable, "-c", COMMON + EVERY_PART, str(tmp_path_factory.mktemp("onnx"))],
        input=json.dumps(PARTS),
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_exported_encoders_serve_images_of_any_size(faults: dict[str, str]) -> None:
    assert "exported" not in faults, faults["exported"]


def test_a_trace_searches(faults: dict[str, str]) -> None:
    assert "traced" not in faults, faults["traced"]


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra smalti[onnx]")
def test_onnx_gives_the_same_tokens(faults: dict[str, str]) -> None:
    assert "onnx" not in faults, faults["onnx"]
