"""The loop in two processes against the loop in one, and what they decide together."""

import sys
from pathlib import Path

import pytest
import torch
from training.many_process_steps import alone

from smalti.training.runtime import join_processes

pytest.importorskip("accelerate")
SCRIPT = Path(__file__).with_name("many_process_steps.py")
COMPARED = ("plain", "pieces", "codebook weight 0")


@pytest.fixture(scope="module")
def together(clean, tmp_path_factory):
    """What each of two processes ends with."""
    out = tmp_path_factory.mktemp("together")
    clean.train_together(SCRIPT, out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one():
    return alone()


@pytest.mark.parametrize("case", [*COMPARED, "skip"])
def test_both_processes_hold_the_same_bits(together, case):
    for key, value in together[0][case].items():
        other = together[1][case][key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


@pytest.mark.parametrize("case", COMPARED)
def test_they_do_what_one_process_does_with_the_joined_batch(together, one, case):
    """Uneven parts, with and without pieces: log lines, weights, codebook, statistics, averages."""
    for line, expected in zip(together[0][case]["lines"], one[case]["lines"], strict=True):
        assert line["usage_per_scale"] == expected["usage_per_scale"]
        assert line["terms"] == pytest.approx(expected["terms"], rel=1e-5)
        for name in ("loss", "psnr", "grad_norm", "lr"):
            assert line[name] == pytest.approx(expected[name], rel=1e-4), name
    for key, value in together[0][case].items():
        if isinstance(value, torch.Tensor):
            # Adam divides by the root of tiny gradients, so weights agree less closely than losses
            torch.testing.assert_close(value, one[case][key], rtol=1e-3, atol=1e-4, msg=lambda t, k=key: f"{k}: {t}")


def test_a_loss_that_breaks_in_one_process_is_skipped_in_both(together):
    for result in together:
        assert result["skip"]["skipped"] == 1
        assert [line["step"] for line in result["skip"]["lines"]] == [1, 2, 4, 5, 6]


def test_errors_of_one_process_are_those_of_all(together):
    for result in together:
        assert "at step 3, on 3-1-00, 3-1-01, 3-1-02" in result["stop"]
        assert result["no data"] == "nothing left"
        assert "invalid literal" in result["in all"]
        assert "/nowhere/x" in result["on main"]


def test_the_first_process_answers_for_all(together):
    for result in together:
        assert (result["main's"], result["any"], result["none"]) == (7, True, False)


def test_a_process_that_nobody_launched_cannot_join(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="neither torchrun nor accelerate launch"):
        join_processes("cpu")


def test_without_accelerate_the_extra_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match=r"pip install 'smalti\[accelerate\]'"):
        join_processes("cpu")
