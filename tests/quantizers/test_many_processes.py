"""Two processes learn as one would on the joined batch: equal codebooks to the bit, equal numbers to 1e-5."""

from pathlib import Path

import pytest
import torch
from quantizers.learning_together import cases, everything

SCRIPT = Path(__file__).with_name("learning_together.py")
NAMES = [f"{name}, {kind}" for name in cases() for kind in ("even", "uneven")] + ["ema, masked", "lfq, masked"]


@pytest.fixture(scope="module")
def together(clean, tmp_path_factory):
    """What each of two processes ends with."""
    out = tmp_path_factory.mktemp("together")
    clean.train_together(SCRIPT, out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    """What one process ends with that has the joined batch."""
    return everything(0, 1)


def test_every_case_was_run(together, alone):
    assert list(alone) == list(together[0]) == list(together[1]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_processes_hold_the_same_bits(together, name):
    one, other = (result[name] for result in together)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("name", [name for name in NAMES if "masked" not in name])
def test_they_learn_what_one_process_learns_from_the_joined_batch(together, alone, name):
    """Codebooks, usage statistics, encoder and losses of every step."""
    for key, value in together[0][name].items():
        expected = alone[name][key]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=lambda text, k=key: f"{k}: {text}")


@pytest.mark.parametrize("name", ["vector", "ema"])
def test_codes_were_revived_on_the_way(alone, name):
    codebook = "quantizer.embedding.weight"
    assert not torch.allclose(alone[f"{name}, even"][codebook], alone[f"{name} without revival, even"][codebook])
