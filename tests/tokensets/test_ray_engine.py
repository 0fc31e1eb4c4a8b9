"""`--engine ray` on a cluster of this machine: a node dies in mid-run, and the set is that of an unbroken local run.

Python files among the pictures do not run in any process of the job.

Cluster and job live in a process of their own, and all that Ray writes in a folder of its own, so that nothing of it
stays behind. Every address is of the loopback interface.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import MODULES, lay_out
from PIL import Image

from smalti.formats.storage import Storage
from smalti.formats.token_set import verify
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.tokenizers import SimpleVQVAE

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs the extra smalti[ray]")
needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="gives every node an address of its own in 127.0.0.0/8"
)

SHARDS = 6
PATIENCE = 420
"""Seconds for a busy machine; an idle one takes 30."""

JOB = """
import os, sys, threading, time
from contextlib import chdir
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from smalti.cli import main


def works(node):
    raylet = node.all_processes["raylet"][0].process.pid
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == raylet and "MapWorker" in (stat.parent / "cmdline").read_text():
                return True
        except OSError:
            pass
    return False


def kill_one_that_works():
    while not (done := list(progress.glob("0*.json"))):
        time.sleep(0.01)
    cluster.remove_node(next(filter(works, nodes)), allow_graceful=False)
    Path("finished-at-the-kill").write_text(str(len(done)))


progress = Path("ray/progress")
options = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
with chdir(sys.prefix):
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.2", **options})
    nodes = [cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{n}", **options) for n in (3, 4)]
os.environ["RAY_ADDRESS"] = cluster.address
threading.Thread(target=kill_one_that_works, daemon=True).start()
code = main(["tokenize", "run", "photos", "--out", "ray", "--engine", "ray", *sys.argv[1:], "--json"])
Path("nodes-at-the-end").write_text(str(sum(node["Alive"] for node in ray.nodes())))
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""

QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "60000",
}
"""That a node is gone: whose port is closed three times in as many seconds. A busy one may take a minute to answer."""


@pytest.fixture
def cluster_folder() -> Iterator[str]:
    """Where Ray writes; short, as names of sockets must be. What still runs of it at the end is ended."""
    folder = tempfile.mkdtemp(prefix="smalti", dir="/tmp")
    yield folder
    for pid in running_in(folder):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def running_in(folder: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder in path.read_text():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


@needs_ray
@needs_linux
def test_a_node_dies_and_nothing_is_lost(tmp_path: Path, cluster_folder: str) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra smalti[datasets]")
    torch.manual_seed(0)
    model = SimpleVQVAE(32, 8, 8, patch_nums=(1, 2, 4)).train()
    model(torch.rand(8, 3, 16, 16) * 2 - 1)
    model.eval().save_pretrained(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    for i in range(16 * SHARDS):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:03d}.png")
    (tmp_path / "photos" / "050.png").write_bytes(b"no image")
    run, photos, local = (str(tmp_path / name) for name in ("run", "photos", "local"))
    tokenize(TokenizeConfig(run, photos, local, size=32, crops=30, shard_images=16, device="cpu"))

    lay_out(tmp_path, MODULES)
    job = Path(cluster_folder) / "job"  # elsewhere: the folder of a script is on its path
    job.write_text(JOB)
    own = {"RAY_TMPDIR": cluster_folder, "RAY_USAGE_STATS_ENABLED": "0", **QUICK_TO_NOTICE}
    source = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    finished = subprocess.run(
        [sys.executable, str(job), "--size=32", "--crops=30", "--shard_images=16", "--device=cpu"],
        cwd=tmp_path,  # the paths of the job are relative: its workers must find them all the same
        env=os.environ | own | source,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert 1 <= int((tmp_path / "finished-at-the-kill").read_text()) < SHARDS
    assert (tmp_path / "nodes-at-the-end").read_text() == "2"  # of three: head, survivor
    assert json.loads(finished.stdout.splitlines()[0])["made"] == SHARDS  # Ray's complaints do not stand before it
    assert running_in(cluster_folder) == []
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert verify(Storage(tmp_path / "ray")) == []


def files(folder: Path) -> dict[str, bytes]:
    """All files but the one line that says where the images lay."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["source"], manifest["checksum"]
    return found | {"manifest": json.dumps(manifest).encode()}


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    from smalti.tokensets.ray_engine import WorkerPool, make_on_ray
    from smalti.tokensets.shards import Plan

    with pytest.raises(ValueError, match=r"pip install 'smalti\[ray\]'"):
        next(make_on_ray(Plan("", "", "", 1, "", {}, 16, 16), [0], str(tmp_path), WorkerPool(1, 0, "cpu")))
