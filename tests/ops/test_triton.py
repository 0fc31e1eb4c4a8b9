"""The Triton back end: what it stores, how its passes hand on, whether its kernels compile for GPUs, what it refuses.

Triton's interpreter must be chosen before triton is imported. So one test starts a process in which it is; there the
tests marked `interpreted` and the triton cases of `test_exact.py` run. Where there is a GPU, the latter run on it too.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from brute_force import assert_nearest, few_vectors, randn
from torch.utils._python_dispatch import TorchDispatchMode

from smalti.ops import nearest_code

triton = pytest.importorskip("triton", reason="triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).parent.parent.parent

interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in test_the_answers_under_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")


@compiled
def test_the_answers_under_the_interpreter() -> None:
    # numpy warns of infinities that kernels meet on purpose
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "-W", "ignore::RuntimeWarning"]
    # fewer than half of the cases take a tenth of the time
    left_out = "large_offset or 9000 or 5000 or (dot or cosine) and (any_scale or 257 or crowded or 1025)"
    left_out += " or dot and (few_vectors or finite)"
    left_out += " or crowded and (0.3 or 0.0001) or any_scale and (1e-1 or 1e-2 or 1e-30 or 10000000000 or 1e+25)"
    left_out += " or 1000-13"
    chosen = f"triton and not ({left_out})"
    command = [sys.executable, "-m", "pytest", *options, "tests/ops/test_exact.py", __file__, "-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


class Allocations(TorchDispatchMode):
    """The bytes of the largest tensor that comes into being while it is entered."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@interpreted
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_larger_than_n_or_k_is_stored(dtype: torch.dtype, precision: str) -> None:
    z, codebook = randn(64, 150).to(dtype).T, randn(140, 64, seed=1).to(dtype)
    with Allocations(z, codebook) as allocations:
        indices = nearest_code(z, codebook, backend="triton", precision=precision)  # type: ignore[arg-type]
    assert 150 * 8 <= allocations.largest <= 16 * 64 * 4  # N indices, 3 numbers a code, 16 codes for the origin
    assert_nearest(indices, z, codebook, "euclidean")  # fast too: the interpreter does not round to TF32


@interpreted
def test_what_tf32_cuts_off_does_not_reach_the_exact_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies in fp32; here the first pass gets factors of 10 bits, as on tensor cores."""
    from smalti.ops import triton_search

    search = triton_search._search

    def cut(x: torch.Tensor) -> torch.Tensor:
        return (x.view(torch.int32) & -(2**13)).view(torch.float32)

    def tensor_core_search(z, codebook, codes, rows, indices, products):  # type: ignore[no-untyped-def]
        if products == "tf32":
            z, codebook = cut(z), cut(codebook)
        return search(z, codebook, codes, rows, indices, products)

    monkeypatch.setattr(triton_search, "_search", tensor_core_search)
    codebook = randn(50, 64).repeat(3, 1) + 1e-3 * randn(150, 64, seed=1)
    z = codebook[:60] + 1e-3 * randn(60, 64, seed=2)  # one block
    exact = nearest_code(z, codebook, backend="triton")
    assert_nearest(exact, z, codebook, "euclidean")
    assert not torch.equal(nearest_code(z, codebook, backend="triton", precision="fast"), exact)


@interpreted
def test_the_number_of_splits_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from smalti.ops import triton_search

    z, codebook, _ = few_vectors(400)
    float64, undecided, splits = triton_search._search_float64, [], []

    def counted(z, codebook, metric, rows):  # type: ignore[no-untyped-def]
        undecided.append(int(rows.number))
        return float64(z, codebook, metric, rows)

    monkeypatch.setattr(triton_search, "_search_float64", counted)
    answers = []
    for programs in (1, 3, 256):
        monkeypatch.setattr(triton_search, "PROGRAMS", programs)
        splits.append(triton_search._grid(len(z), 400, triton_search.LAUNCH)[1])
        answers.append(nearest_code(z, codebook, "cosine", backend="triton"))
    assert splits == [1, 2, 4]
    assert undecided == [6] * 3  # scores in fp32 cannot tell equal and almost equal codes apart
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@interpreted
def test_shapes_alone_choose_the_number_of_splits() -> None:
    from smalti.ops import triton_search as ts

    for N, K in itertools.product((1, 64, 65, 1000, 8192, 8193, 10**6), (1, 64, 65, 1000, 16384, 10**6)):
        blocks, splits = ts._grid(N, K, ts.LAUNCH)
        assert blocks * ts.LAUNCH["BLOCK_N"] >= N
        assert splits.bit_count() == 1
        assert splits == 1 or blocks * splits <= ts.PROGRAMS
        assert splits <= triton.cdiv(K, ts.LAUNCH["BLOCK_K"])
    assert ts._grid(64, 16384, ts.LAUNCH) == (1, ts.PROGRAMS)
    assert ts._grid(8193, 16384, ts.LAUNCH) == (129, 1)


COMPILE = """
import subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from smalti.ops import triton_search as ts

types = dict.fromkeys(["z", "codes", "origin", "bias", "scale", "length", "largest"], "*fp32")
types |= dict.fromkeys(["best_of_split", "second_of_split", "margin"], "*fp32") | {"code_of_split": "*i32"}
types |= {"rows": "*i64", "count": "*i64", "indices": "*i64", "is_open": "*i1", "relative_error": "fp32"}
types |= dict.fromkeys(["K", "D", "stride_zn", "stride_ck", "stride_k"], "i32")
ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"

def spills(kernel, capability, num_warps, **constants):
    constants |= {"stride_zd": 1, "stride_cd": 1, "stride_d": 1}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": num_warps})
    ptx = Path("kernel.ptx")
    ptx.write_text(compiled.asm["ptx"])
    arch = "sm_90a" if capability == 90 else f"sm_{capability}"
    command = [ptxas, "-v", f"-arch={arch}", ptx, "-o", "kernel.cubin"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [line for line in told.splitlines() if "spill" in line and " 0 bytes spill stores" not in line]

for capability, products, D in ((80, "ieee", 8), (90, "tf32", 64), (90, "tf32", 256)):
    constants = dict(PRODUCTS=products, D=D, BLOCK_D=ts._block_d(products, D)) | ts.LAUNCH
    print(capability, products, D, *spills(ts.search, capability, **constants))
for S in (1, ts.PROGRAMS):
    print("decide", S, *spills(ts.decide, 80, SPLITS=S, **ts.LAUNCH_DECIDE))
types |= {"best_of_split": "*fp64", "code_of_split": "*i64"}
print("float64", *spills(ts.search_float64, 80, METRIC="cosine", **ts.LAUNCH_FLOAT64))
print("describe", *spills(ts.describe, 80, METRIC="cosine", BLOCK_K=64, num_warps=4))
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with the Linux wheel")
def test_kernels_compile_for_gpus_and_keep_all_in_registers(tmp_path: Path) -> None:
    """The assembler for NVIDIA GPUs comes with triton: without a GPU too it tells whether it takes the kernels."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    kernels = ["80 ieee 8", "90 tf32 64", "90 tf32 256", "decide 1", "decide 256", "float64", "describe"]
    assert result.stdout.splitlines() == kernels, result


@compiled
def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backend: got 'triton' with z_ND on cpu"):
        nearest_code(torch.zeros(2, 3), torch.zeros(4, 3), backend="triton")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dim", [8, 64, 256])
def test_on_a_gpu_no_matrix_of_distances_is_stored(dim: int) -> None:
    """With the back end that CUDA tensors get by themselves; the oracle is float64 over some of the rows."""
    z, codebook = torch.randn(65536, dim, device="cuda"), torch.randn(16384, dim, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    indices = nearest_code(z, codebook)
    assert torch.cuda.max_memory_allocated() - before < 64 * (65536 + 16384)
    assert torch.equal(indices[::512], torch.cdist(z[::512].double(), codebook.double()).argmin(1))
    assert (nearest_code(z, codebook, precision="fast") == indices).float().mean() > 0.9


@interpreted
def test_triton_serves_a_device_only_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    from smalti.ops import nearest, triton_search

    cpu, search = torch.device("cpu"), triton_search.nearest
    nearest._triton_agrees.cache_clear()
    assert nearest._triton_agrees(cpu)

    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("no kernel image\nis available")

    for broken, why in ((lambda *given: search(*given) + 1, "differs from a matrix"), (fails, r"\(no kernel image\)")):
        monkeypatch.setattr(triton_search, "nearest", broken)
        nearest._triton_agrees.cache_clear()
        with pytest.warns(RuntimeWarning, match=why):
            assert not nearest._triton_agrees(cpu)
    nearest._triton_agrees.cache_clear()
