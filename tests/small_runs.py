"""Small runs of `train`, and how two of them are compared; for tests of training."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch

from smalti.data import TransformConfig
from smalti.jobs.train import TrainConfig
from smalti.training import OptimizationConfig, Reporter, read_log

STEPS = 20
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
"""`accelerate launch`; its --multi_gpu starts several processes, with GPUs or without."""


def config_for(photos, out, **changes):
    steps = changes.pop("steps", STEPS)
    config = TrainConfig(
        data=str(photos),
        out=str(out),
        model="multi-scale",
        model_args={"hidden_dim": 8, "vocab_size": 16, "embedding_dim": 4, "num_stages": 2, "patch_nums": [1, 2, 4]},
        input=TransformConfig(size=16, crop="random", zoom=2.0, flip=True),
        optimization=OptimizationConfig(steps=steps, batch_size=4, lr=2e-3, warmup_steps=5),
        loss_weights={"l1": 1.0, "ms_ssim": 0.1},
        precision="fp32",
        log_every=3,
        sample_every=8,
        checkpoint_every=6,
    )
    return replace(config, **changes)


class StopAt(Reporter):
    """Presses Ctrl-C during a given step."""

    def __init__(self, at):
        self.at, self.heard, self.notes, self.closed = at, [], [], False

    def start(self, steps, done):
        self.heard.append(("start", steps, done))

    def step(self, step):
        self.heard.append(step)
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)

    def log(self, line): ...

    def note(self, text):
        self.notes.append(text)

    def close(self):
        self.closed = True


def log_without_speed(run):
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_log(run)]


def final_state(run, step=STEPS):
    folder = f"{run}/checkpoints/{step:06d}"
    rest = torch.load(f"{folder}/training.pt", weights_only=True)
    files = json.loads(Path(folder, "checkpoint.json").read_text())["sha256"]
    for state in rest["random"]:
        del state["python"]  # the type check of the tests draws from it
    return files, rest


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
