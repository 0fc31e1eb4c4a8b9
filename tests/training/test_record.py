"""The log against numbers taken by hand; what it keeps of a run that was killed."""

import json
import math
from contextlib import closing

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smalti.losses import LossTable
from smalti.tokenizers import SimpleVQVAE
from smalti.training import StepResult, TokenizerPass, read_log, tokenizer_line
from smalti.training.record import RunRecord


def result(step=4, seed=0):
    torch.manual_seed(seed)
    model = SimpleVQVAE(16, 4, 8, num_stages=1, patch_nums=(1, 2, 4)).train()
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        output = model(image)
    loss = LossTable({"l1": 2.0})(image, output)
    return StepResult(step, 2, (TokenizerPass(image, output),), loss, 0.5, torch.tensor(3.0), 0.1)


def test_a_line_holds_the_numbers_of_its_step():
    step = result()
    line = tokenizer_line(step, 16, 3, 12.5)
    reconstruction, _, indices = step.outputs[0].output
    rounded = ((reconstruction.clamp(-1, 1) + 1) * 127.5).round()
    target = ((step.outputs[0].image + 1) * 127.5).round()
    squares = (rounded - target).double().square().mean(dim=(1, 2, 3))
    decibels = [10 * math.log10(255**2 / value) for value in squares.tolist()]
    assert line["psnr"] == pytest.approx(sum(decibels) / 2, abs=1e-6)
    assert line["usage_per_scale"] == [len(set(i.flatten().tolist())) / 16 for i in indices]
    assert line["usage"] == len(set(torch.cat([i.flatten() for i in indices]).tolist())) / 16
    assert set(line["terms"]) == {"l1", "codebook", "commitment"}
    assert line["terms"]["l1"] == pytest.approx(float((reconstruction - step.outputs[0].image).abs().mean()))
    weights = {"l1": 2.0, "codebook": 1.0, "commitment": 1.0}
    assert line["loss"] == pytest.approx(sum(weights[name] * value for name, value in line["terms"].items()))
    assert (line["step"], line["lr"], line["grad_norm"], line["images_per_second"]) == (4, 0.5, 3.0, 12.5)
    assert json.loads(json.dumps(line)) == line


def test_exact_reconstruction_has_no_psnr_and_is_valid_json():
    step = result()
    step.outputs[0].image.copy_(step.outputs[0].output.reconstruction)
    line = tokenizer_line(step, 16, 0, 1.0)
    assert line["psnr"] is None
    assert "Infinity" not in json.dumps(line)


def test_log_and_tensorboard_say_the_same(tmp_path):
    with closing(RunRecord(tmp_path)) as record:
        for step in (1, 2, 3):
            record.add(tokenizer_line(result(step, seed=step), 16, 0, 10.0 * step))
        record.add_picture(torch.zeros(3, 4, 4, dtype=torch.uint8), 3)
    lines = read_log(tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = {
        "loss/total": lambda line: line["loss"],
        "loss/l1": lambda line: line["terms"]["l1"],
        "loss/commitment": lambda line: line["terms"]["commitment"],
        "psnr": lambda line: line["psnr"],
        "lr": lambda line: line["lr"],
        "grad_norm": lambda line: line["grad_norm"],
        "images_per_second": lambda line: line["images_per_second"],
        "usage/all": lambda line: line["usage"],
        "usage/scale_2": lambda line: line["usage_per_scale"][2],
    }
    for tag, value in tags.items():
        events = board.Scalars(tag)
        assert [event.step for event in events] == [1, 2, 3]
        assert [event.value for event in events] == pytest.approx([value(line) for line in lines], rel=1e-6)
    assert [event.step for event in board.Images("samples")] == [3]


def test_resuming_drops_lines_after_the_checkpoint_and_a_line_cut_off(tmp_path):
    with closing(RunRecord(tmp_path)) as record:
        for step in (1, 2, 3):
            record.add(tokenizer_line(result(step), 16, 0, 1.0))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    with closing(RunRecord(tmp_path, step=2)) as record:
        record.add(tokenizer_line(result(3, seed=7), 16, 0, 1.0))
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    assert read_log(tmp_path)[2]["loss"] == tokenizer_line(result(3, seed=7), 16, 0, 1.0)["loss"]


def test_each_line_is_on_disk_at_once(tmp_path):
    with closing(RunRecord(tmp_path)) as record:
        record.add(tokenizer_line(result(1), 16, 0, 1.0))
        assert len(read_log(tmp_path)) == 1
