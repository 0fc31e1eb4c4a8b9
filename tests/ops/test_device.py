"""Which device there is, and which number format its hardware asks for."""

import pytest
import torch

from smalti.ops.device import choose_dtype, find_device, has_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, False),
    ],
)
def test_auto_follows_the_features_of_the_cpu(monkeypatch, features, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert has_bf16(CPU) is expected
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if expected else torch.float32)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16)):
        assert choose_dtype(name, CPU) == dtype


def test_an_older_torch_is_asked_in_its_own_way(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_bf16(CPU) is True
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert has_bf16(CPU) is False


def test_a_device_that_is_not_there_is_refused_in_one_line():
    assert find_device("cpu") == CPU
    for name in ("toaster", "cuda:97", ""):
        with pytest.raises(ValueError, match="device: got") as caught:
            find_device(name)
        assert "cpu" in str(caught.value)
        assert "\n" not in str(caught.value)
