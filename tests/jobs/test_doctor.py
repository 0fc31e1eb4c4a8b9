"""`smalti doctor`: it finds devices that compute wrong values, says so in a line, and calls a healthy CPU healthy.

There is one device here, the CPU. The reference decodes to uint8 and the checked pass to float: that tells them apart.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smalti.cli import main
from smalti.evaluation.device_check import Reference
from smalti.jobs import doctor as job
from smalti.ops import native
from smalti.ops.nearest import backend_faults
from smalti.tokenizers import PatchVQVAE, Tokens
from smalti.zoo import BOXED, open_tokenizer

CPU = torch.device("cpu")
PICTURE = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _quick(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "SIDE", 32)
    monkeypatch.setattr(job, "WEIGHTS", {})


def wrong_device(monkeypatch: pytest.MonkeyPatch, method: str, wrong: Callable) -> None:
    """Change what a tokenizer returns, but not for the reference."""
    right = getattr(PatchVQVAE, method)

    def changed(self: PatchVQVAE, given: torch.Tensor | Tokens) -> torch.Tensor | Tokens:
        result = right(self, given)
        return wrong(result) if torch.backends.mkldnn.enabled else result

    monkeypatch.setattr(PatchVQVAE, method, changed)


def test_a_healthy_cpu_is_called_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "cpu is healthy: it computes in fp32 what the reference computes"
    assert "code search, portable: checked" in out
    assert all(f"weights of {name}: in the package" in out for name in BOXED)


def test_the_json_holds_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is True
    formats = [(check["tokenizer"], check["number_format"]) for check in found["checks"] if check["device"] == "cpu"]
    assert formats == [(name, each) for name in BOXED for each in ("fp32", "bf16", "fp16")]
    for check in found["checks"]:
        assert 0 <= check["close_calls"] <= check["different_tokens"] <= check["tokens"]
        assert check["values"] == 3 * 32 * 32


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        ("decode", lambda image: image * 0.5, "the tokens are right, but decoded pixels are wrong, by up to "),
        ("decode", lambda image: image * torch.nan, "decoding gives NaN"),
        ("encode", lambda t: replace(t, indices=(*t.indices[:-1], t.indices[-1] * 0 - 1)), "NaN or invalid tokens"),
        ("encode", lambda t: replace(t, indices=(*t.indices[:-1], (t.indices[-1] + 1) % 16)), " tokens are wrong"),
    ],
)
def test_a_fault_is_one_clear_line(
    method: str, wrong: Callable, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_device(monkeypatch, method, wrong)
    assert main(["doctor", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "cpu: wrong results in fp32, do not use it"
    assert any(line.startswith("cpu in fp32, photo-f8: ") and said in line for line in lines)


def test_a_format_that_the_device_lacks_is_reported_but_no_fault_of_the_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(image: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise NotImplementedError("no such operation\nin this format")
        return image

    wrong_device(monkeypatch, "decode", refuse)
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "cpu in fp16, photo-f8: NotImplementedError: no such operation in this format" in out


@pytest.mark.parametrize("name", BOXED)
def test_the_distance_beyond_a_border_is_that_of_geometry(name: str) -> None:
    """A latent vector that is moved by this distance towards the other code is as near to it as to its own."""
    reference = Reference.of(open_tokenizer(name), PICTURE)
    assert (reference.beyond_border(reference.tokens) < 1e-6).all()
    last = reference.tokens.indices[-1]
    other = replace(reference.tokens, indices=(*reference.tokens.indices[:-1], (last + 5) % 16))
    distances = reference.beyond_border(other)[:, -last[0].numel() :].flatten() * reference.latent.norm(dim=1).mean()
    f_hats = reference.quantizer.decode_progressive(
        reference.tokens.indices if len(reference.tokens.indices) > 1 else last
    )
    codes = reference.quantizer.get_codebook()
    before = f_hats[-2] if len(f_hats) > 1 else torch.zeros_like(reference.latent)
    vectors = (reference.latent - before).flatten(2)[0].T
    own, chosen = codes[last.flatten()], codes[other.indices[-1].flatten()]
    direction = torch.nn.functional.normalize(chosen - own, dim=1)
    moved = vectors + distances[:, None] * direction
    torch.testing.assert_close((moved - own).norm(dim=1), (moved - chosen).norm(dim=1))


def test_back_ends_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_faults(CPU)["portable"] == ""
    search = native.nearest
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "nearest", lambda *given: search(*given) * 0)
    assert backend_faults(CPU)["native"] == "its result differs from a matrix product's"
    monkeypatch.setattr(native, "available", lambda: False)
    assert backend_faults(CPU)["native"] == "installed without a C++ compiler"


def test_without_photographs_there_is_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.data.embedded.find_spec", lambda _: None)
    found = job.doctor(job.DoctorConfig("cpu"))
    assert found.picture == "waves"
    assert not found.faults


def test_missing_packages_of_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.11", 'no-such-package; extra == "codec"', 'pillow>=1 ; extra == "codec"', "numpy; extra == 'x'"]
    monkeypatch.setattr(job, "requires", lambda _: lines)
    assert job._extras() == {"codec": ("no-such-package",), "x": ()}
