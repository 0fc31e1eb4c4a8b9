"""nearest_code stores nothing of the size N x K."""

import sys

import pytest
from clean_interpreter import CleanInterpreter

from smalti.ops import native

MEMORY = """
import sys
from pathlib import Path
import torch
from smalti.ops import nearest_code

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

n, k, d, backend, same = *map(int, sys.argv[1:4]), *sys.argv[4:]
torch.set_num_threads(1)
z, codebook = torch.randn(n, d), torch.randn(k, d)
if same == "same":  # every pair of a tile is a candidate
    codebook[:] = codebook[:1].clone()
few = min(300, 2**19 // d)
nearest_code(torch.randn(few, d), torch.randn(few, d), backend=backend)  # what is loaded once does not count
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
indices = nearest_code(z, codebook, backend=backend)
print(kilobytes("VmHWM") - before - indices.nbytes / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
@pytest.mark.parametrize(
    ("n", "k", "d", "backend", "codes"),
    [
        (16384, 262144, 8, "native", "different"),
        (2**20, 3, 16, "native", "different"),
        (2048, 262144, 8, "portable", "different"),
        (2**20, 3, 16, "portable", "different"),
        (1500, 2500, 16, "portable", "same"),
        (12, 12, 200_000, "portable", "different"),
        (3, 2**20, 64, "auto", "different"),
    ],
)
def test_memory_beside_the_inputs_stays_under_64_mb(
    n: int, k: int, d: int, backend: str, codes: str, clean: CleanInterpreter
) -> None:
    """In a process of its own, by the operating system's count."""
    if backend == "native" and not native.available():
        pytest.skip("smalti was installed without a compiler")
    result = clean.run("-c", MEMORY, str(n), str(k), str(d), backend, codes)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 64e6 / 1024
