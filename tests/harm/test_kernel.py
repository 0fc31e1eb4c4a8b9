"""The C++ kernel under AddressSanitizer: no read or write beside what it was given, on every instruction set here."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "-fsanitize=address -fno-omit-frame-pointer -g"


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("g++") is None, reason="needs cmake and g++")
def test_no_byte_beside_its_arrays(tmp_path):
    nanobind = importlib.util.find_spec("nanobind")
    if nanobind is None:
        pytest.skip("needs nanobind: pip install nanobind")
    where = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, text=True, check=True
    )
    settings = [f"-Dnanobind_DIR={where.stdout.strip()}", f"-DCMAKE_CXX_FLAGS={SANITIZE}", "-DCMAKE_BUILD_TYPE=None"]
    settings += [f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (["cmake", "-S", ROOT, "-B", tmp_path, *settings], ["cmake", "--build", tmp_path]):
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {"LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, Path(__file__).with_name("addressed.py"), tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "plain whole" in done.stdout
