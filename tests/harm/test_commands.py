"""What a day of use does to whole commands: each runs in a process of its own, as people start it."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.data import open_images
from smalti.formats import read_token_file
from smalti.formats.storage import Storage
from smalti.formats.token_set import verify
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.tokenizers import SimpleVQVAE
from smalti.training import list_checkpoints
from smalti.zoo import load

KILLED_RUNS = Path(__file__).parents[1] / "jobs" / "killed_runs.py"
TRAINING = (
    *("--model=simple", "--model_args={hidden_dim: 4, vocab_size: 8, embedding_dim: 4}", "--input.size=8"),
    *("--input.zoom=1", "--loss_weights={l1: 1}", "--precision=fp32", "--optimization.batch_size=2"),
    *("--checkpoint_every=1", "--sample_every=100"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for n in range(64):
        pixels = np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    SimpleVQVAE(8, 4, 4).save_pretrained(folder)
    return folder


def start(*words: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "smalti.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **options
    )


def finish(*words: object, **options) -> tuple[int, str, str]:
    process = start(*words, **options)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def train(photos: Path, out: Path, steps: int, *more: str) -> tuple[object, ...]:
    return "train", photos, "-o", out, *TRAINING, f"--optimization.steps={steps}", *more


def wait_for_step(out: Path, process: subprocess.Popen, after: int = 0) -> int:
    while process.poll() is None:
        steps = [int(path.name) for path in list_checkpoints(out / "checkpoints")]
        if steps and steps[-1] > after:
            return steps[-1]
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def test_twenty_kills_of_training(photos, tmp_path):
    """As in `make test`, five times as often: every checkpoint loads, the end has the bits of an undisturbed run."""
    command = [sys.executable, "-W", "ignore", KILLED_RUNS, photos, tmp_path, "20", "150"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed after step") >= 15
    assert load(tmp_path / "killed").fingerprint == load(tmp_path / "whole").fingerprint


def test_twenty_kills_of_tokenizing(run, photos, tmp_path):
    """Whatever stays after each death is enough to go on; the end has the bytes of an undisturbed run."""
    context, moment = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload([tokenize.__module__])
    whole, out = (
        TokenizeConfig(str(run), str(photos), str(tmp_path / name), size=8, shard_images=16)
        for name in ("whole", "out")
    )
    tokenize(whole)
    killed = 0
    for _ in range(20):
        process = context.Process(target=tokenize, args=(out,))
        process.start()
        while process.is_alive() and not Path(out.out).exists():
            time.sleep(0.001)
        process.join(moment.uniform(0, 0.05))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 10
    tokenize(out)
    assert verify(Storage(out.out)) == []
    for path in Path(whole.out).rglob("*"):
        if path.is_file():
            assert (Path(out.out) / path.relative_to(whole.out)).read_bytes() == path.read_bytes(), path


def test_two_runs_on_one_folder(photos, tmp_path):
    """Whoever comes second is refused in one line, and the folder stays one that loads and resumes."""
    out = tmp_path / "run"
    pair = [start(*train(photos, out, 30)) for _ in range(2)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in pair]
    assert sorted(code for _, code in ends) == [0, 2], ends
    (refused,) = (err for err, code in ends if code == 2)
    assert "trains in" in refused or "holds a run" in refused
    assert "Traceback" not in refused
    for path in (out, *list_checkpoints(out / "checkpoints")):
        load(path)
    assert finish(*train(photos, out, 32, "--resume"))[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_with_its_last_step_saved(number, photos, tmp_path):
    out = tmp_path / "run"
    process = start(*train(photos, out, 100_000))
    step = wait_for_step(out, process)
    process.send_signal(number)
    said, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "continue with: smalti train" in said
    assert int(list_checkpoints(out / "checkpoints")[-1].name) >= step


@pytest.mark.parametrize("verb", ["train", "tokenize", "encode", "reconstruct"])
def test_a_full_disk_is_one_line(verb, run, photos, tmp_path):
    """A limit on a file's size fails like a full disk: in the middle of a write."""
    words = {
        "train": train(photos, tmp_path / "out", 3),
        "tokenize": ("tokenize", run, photos, "-o", tmp_path / "out"),
        "encode": ("encode", run, photos / "00.png", "-o", tmp_path / "out"),
        "reconstruct": ("reconstruct", run, photos / "00.png", tmp_path / "out.png"),
    }[verb]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    code, _, err = finish(*words, preexec_fn=limit)
    assert code == 2
    assert len([line for line in err.splitlines() if "error:" in line]) == 1
    assert not (tmp_path / "out.png").exists()
    assert verb != "encode" or not (tmp_path / "out").exists()


def test_a_closed_pipe_is_no_error(run, photos, tmp_path):
    process = start("encode", run, *sorted(photos.iterdir()), "-o", tmp_path / "out")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0, err
    assert "Traceback" not in err


def test_names_of_any_script_under_the_c_locale(run, photos, tmp_path):
    locale = {"LC_ALL": "C"}
    folder = tmp_path / "图片 ü"
    folder.mkdir()
    (folder / "猫.png").write_bytes((photos / "00.png").read_bytes())
    code, _, err = finish("encode", run, folder / "猫.png", "-o", folder / "词元", env=locale)
    assert code == 0, err
    assert [image.name for image in read_token_file(folder / "词元").images] == ["猫.png"]
    code, _, err = finish("decode", run, folder / "词元", "-o", folder / "回.png", env=locale)
    assert code == 0, err
    assert finish(*train(folder, tmp_path / "run ü", 1), env=locale)[0] == 0


def test_umask_077_is_obeyed_and_nothing_needs_more(photos, tmp_path):
    assert finish(*train(photos, tmp_path / "run", 1), umask=0o077)[0] == 0
    assert [path for path in (tmp_path / "run").rglob("*") if path.stat().st_mode & 0o077] == []
    assert finish("eval", tmp_path / "run", photos, "--judges=[]", umask=0o077)[0] == 0


def test_a_home_that_cannot_be_written(run, photos, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").write_text("in the way")
    places = {name: str(home / "file") for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME")}
    for words in (("eval", run, photos), train(photos, tmp_path / "run", 1), ("--help",)):
        code, _, err = finish(*words, env=places)
        assert code == 0, err
    assert [path.name for path in home.iterdir()] == ["file"]


def test_a_picture_of_100_megapixels(run, tmp_path):
    """Encoded as it is by whoever allows it, refused by name before it is decoded by whoever does not."""
    path = tmp_path / "huge.png"
    Image.new("RGB", (12_500, 8_000), (10, 200, 30)).save(path, compress_level=1)
    code, _, err = finish("encode", run, path, "-o", tmp_path / "no", "--max_pixels=1000000")
    assert (code, err.count("\n")) == (2, 1)
    assert "huge.png" in err
    assert len(open_images(str(path))) == 1
    code, said, err = finish(*train(tmp_path, tmp_path / "run", 1))
    assert code == 0, err + said


def test_two_thousand_encodes_of_varying_size_keep_memory_flat(run):
    """The resident size after 2000 images is that after 1000, when the caches of torch's kernels are full."""
    script = Path(__file__).with_name("many_sizes.py")
    done = subprocess.run([sys.executable, script, run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    print(f"{early / 2**20:.0f} MiB after 1000, {late / 2**20:.0f} MiB after 2000")
    assert late < early * 1.1
