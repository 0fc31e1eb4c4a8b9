"""`smalti sample --class`: a name that exists wins over a number, and the line at the end says which class it was."""

import unicodedata
from pathlib import Path

import pytest
import torch

from smalti.cli import main
from smalti.jobs.sample import SampleConfig, sample
from smalti.priors import TokenLayout
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import build_prior

NAMES = ("0", "1", "10", "11", "2", "007", "caf\u00e9", "two words", "null")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("prior") / "prior"
    tokenizer = SimpleVQVAE(16, 4, 8).eval()
    layout = TokenLayout(tokenizer.vocab_size, ((2, 2),), (8, 8), tokenizer.fingerprint)
    model = build_prior(
        "next-token-small", layout, len(NAMES), tokenizer.quantizer, class_names=NAMES, depth=1, width=16, num_heads=2
    )
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("2", 4),  # a name before a number
        ("#2", 2),
        ("10", 2),
        ("3", 3),  # no class is called so
        ("007", 5),
        ("#007", 7),
        (unicodedata.normalize("NFD", "caf\u00e9"), 6),
        ("two words", 7),
        ("#8", 8),
    ],
)
@pytest.mark.parametrize("spelling", ["--class {}", "--class={}"])
def test_names_win_and_the_class_is_told(
    prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: str, number: int, spelling: str
) -> None:
    words = [word.format(typed) for word in spelling.split(" ")]
    assert main(["sample", str(prior), *words, "-n", "1", "--out", str(tmp_path / "x"), "--device", "cpu"]) == 0
    assert f"1 image of class {NAMES[number]!r} (#{number}), 8 x 8" in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "told"), [("#9", "'#9'"), ("cafe", "'cafe'"), ("-1", "'-1'"), ("12", "'12'")])
def test_what_is_no_class_is_refused(
    prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: str, told: str
) -> None:
    assert main(["sample", str(prior), f"--class={typed}", "--out", str(tmp_path / "x"), "--device", "cpu"]) == 2
    assert f"label: got {told}, expected #0 to #8 or one of 0, 1, 10" in capsys.readouterr().err


def test_a_taken_folder_is_refused_before_the_prior_is_opened(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="already exists"):
        sample(SampleConfig(str(tmp_path / "no prior"), tmp_path))


def test_in_python_an_integer_is_a_number(prior: Path, tmp_path: Path) -> None:
    result = sample(SampleConfig(str(prior), tmp_path / "x", label=2, count=1, device="cpu"))
    assert (result.label, result.classes) == (2, ("10",))
    everything = sample(SampleConfig(str(prior), tmp_path / "y", count=2, device="cpu"))
    assert (everything.label, everything.classes) == (None, ("0", "1"))
