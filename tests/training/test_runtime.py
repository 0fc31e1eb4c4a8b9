"""What is chosen on which hardware, and what the choice does to a forward pass."""

import copy
from contextlib import contextmanager, suppress

import pytest
import torch
from torch import nn

from smalti.ops.pixels import to_float
from smalti.tokenizers import SimpleVQVAE
from smalti.training import Runtime, choose_runtime


def test_autocast_changes_the_number_format_of_layers_only_when_asked():
    layer = nn.Conv2d(3, 3, 1)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        runtime = choose_runtime("cpu", precision)
        with runtime.autocast():
            assert layer(torch.zeros(1, 3, 4, 4)).dtype == dtype


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_changes_strides_but_no_value(channels_last):
    runtime = choose_runtime("cpu", "fp32", channels_last)
    model, image = SimpleVQVAE(16, 4, 8).eval(), torch.rand(2, 3, 8, 8) * 2 - 1
    kernel = next(model.encoder.parameters())
    expected = model(image).reconstruction
    runtime.prepare(model)
    placed = runtime.place(image)
    for tensor in (placed, kernel):
        assert tensor.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert torch.equal(placed, image)
    torch.testing.assert_close(model(placed).reconstruction, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
def test_stored_pixels_become_the_floats_that_they_would_have_become_before(channels_last):
    runtime = choose_runtime("cpu", "fp32", channels_last)
    pixels = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    placed = runtime.place(pixels)
    assert torch.equal(placed, runtime.place(to_float(pixels)))
    assert placed.is_contiguous(memory_format=torch.channels_last) is channels_last


class Stream:
    """A stream that notes what is done with it; torch has streams only where there is a GPU."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def wait_stream(self, other):
        self.calls.append((self.name, "waits for", other.name))


def test_kernels_wait_for_a_copy_and_a_copy_for_no_kernel(monkeypatch):
    calls = []
    kernels, copies = Stream("kernels", calls), Stream("copies", calls)
    current = [kernels]

    @contextmanager
    def entered(stream):
        current.append(stream)
        yield
        current.pop()

    def noted(what):
        return lambda tensor, *_, **options: calls.append((current[-1].name, what, *options)) or tensor.clone()

    monkeypatch.setattr(Runtime, "_copies", copies)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", noted("pins"))
    monkeypatch.setattr(torch.Tensor, "to", noted("copies"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: calls.append((stream.name, "reads")))
    tensor = torch.rand(3)
    sent = Runtime(torch.device("cuda"), torch.float32, True, False).send(tensor)
    assert torch.equal(sent, tensor)
    assert calls == [
        ("kernels", "pins"),
        ("copies", "copies", "non_blocking"),
        ("kernels", "waits for", "copies"),
        ("kernels", "reads"),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_copies_overtake_kernels_and_no_copy_overwrites_what_kernels_still_read():
    runtime = choose_runtime("cuda")
    tensors = [torch.full((1 << 20,), number, dtype=torch.int32).pin_memory() for number in range(40)]
    read = [torch.empty_like(tensor, device="cuda") for tensor in tensors]
    warm = [runtime.send(tensor) for tensor in tensors]  # later calls reuse this memory: allocating could wait
    torch.cuda.synchronize()
    del warm

    for tensor, there in zip(tensors, read, strict=True):
        torch.cuda._sleep(10_000_000)  # a kernel of some milliseconds
        there.copy_(runtime.send(tensor))  # read after the kernel, when later copies have ended
    last_kernel = torch.cuda.current_stream().record_event()
    runtime._copies.synchronize()
    assert not last_kernel.query()
    for tensor, there in zip(tensors, read, strict=True):
        assert torch.equal(there.cpu(), tensor)


def switches() -> tuple[object, ...]:
    """What `Runtime.fast_products` may change, in every way that torch tells it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (cudnn.benchmark, matmul.fp32_precision, matmul.allow_tf32, torch.get_float32_matmul_precision())


def test_a_run_on_cuda_multiplies_fast_and_leaves_no_trace():
    runtime, before = Runtime(torch.device("cuda"), torch.float32, True, False), switches()
    for _ in range(2):
        with suppress(KeyError), runtime.fast_products():
            assert switches() == (True, "tf32", True, "high")
            raise KeyError("a run that fails")
        assert switches() == before
    with choose_runtime("cpu").fast_products():
        assert switches() == before


def test_a_format_that_the_user_chose_stays():
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "ieee"
    try:
        with Runtime(torch.device("cuda"), torch.float32, True, False).fast_products():
            assert (torch.backends.cudnn.benchmark, matmul.fp32_precision) == (True, "ieee")
        assert (torch.backends.cudnn.benchmark, matmul.fp32_precision) == (False, "ieee")
    finally:
        matmul.fp32_precision = "none"


def test_compiling_leaves_names_quantizer_and_copies_alone(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f) or f)
    runtime = choose_runtime("cpu", "fp32", compile=True)
    model = SimpleVQVAE(16, 4, 8).eval()
    names = list(model.state_dict())
    runtime.prepare(model)
    assert [f.__self__ for f in compiled] == [model.encoder, model.decoder]
    assert list(model.state_dict()) == names
    image = torch.zeros(1, 3, 8, 8)
    assert torch.equal(model(image).reconstruction, copy.deepcopy(model)(image).reconstruction)
