"""A step and an encoding never look at a value, for which they would wait for a GPU; counted without one.

`WAITING` says of which devices values are not looked at. With the CPU in it, the CPU runs what a GPU runs: on true
numbers under a mode that counts reads, and on fake tensors, which have no values that could be read.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import small_priors
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from smalti.data import Batch, TokenBatch
from smalti.losses import LossTable
from smalti.ops import nearest, waiting
from smalti.quantizers import DeadCodeRevival, EMAVectorQuantizer, KMeansInit, MultiScaleQuantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    AdversarialConfig,
    GANTrainer,
    NonFiniteLossError,
    OptimizationConfig,
    PriorObjective,
    Runtime,
    SkippedStep,
    TokenizerObjective,
    choose_runtime,
    start_state,
    tokenizer_line,
    train_steps,
)

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "bincount", "_unique2"}
"""Operators whose result decides what the program does next, or has a size that values decide."""
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}
"""What leads to the CPU and, on the CPU, to no operator."""
EVERY = 5
"""Steps between looks."""


class Operators(TorchDispatchMode):
    """Notes which of `READS` run, and indexing by a mask."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith(("index", "_index")) and isinstance(args[1], list | tuple) else ()
        if name in READS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Notes which of `METHODS` are called."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in METHODS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[list[str]]:
    """Every read of a value inside."""
    found: list[str] = []
    with Operators(found), Methods(found):
        yield found


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let the CPU run what a GPU runs; the native search, which is for CPUs, takes no part."""
    monkeypatch.setattr(waiting, "WAITING", {"cpu", "cuda"})
    monkeypatch.setattr(nearest, "_choose", lambda *_: "portable")


def batches(bad: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    for number in itertools.count(1):
        image = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
        yield Batch(image * float("nan") if number == bad else image, (f"{number}.png",), (None,) * 4)


def tokenizer(kind=VectorQuantizer) -> SimpleVQVAE:
    torch.manual_seed(0)
    codebook = kind(16, 4, init=KMeansInit(2), revival=DeadCodeRevival(0.5), decay=0.5)
    return SimpleVQVAE(16, 4, 8, norm="group", quantizer=MultiScaleQuantizer(16, 4, (1, 2, 4), quantizer=codebook))


def training(kind=VectorQuantizer, bad: int = 0, precision="fp32", steps=12, **options):
    """A state, and steps of it with a discriminator and everything that it can do."""
    config = OptimizationConfig(steps=steps, lr=1e-3, warmup_steps=0, ema_decay=0.9, **options)
    runtime = choose_runtime("cpu", precision, channels_last=False)
    weights = {"l1": 1.0, "adversarial": 0.5, "r1": 1.0, "lecam": 0.1}
    model, losses = tokenizer(kind), LossTable(weights)
    adversarial = AdversarialConfig(
        hidden_dim=4, num_layers=1, disc_start=2, disc_warmup=1, spectral_norm=True, augment=("color", "cutout")
    )
    state = start_state(model, config, runtime)
    gan = GANTrainer(adversarial, losses, state, config, runtime)
    objective = TokenizerObjective(model, losses, runtime)
    return state, train_steps(state, batches(bad), objective, config, runtime, gan, EVERY)


def reads_of(steps: Iterator) -> tuple[list[str], object]:
    """What the next step reads, and its result."""
    with counted() as found:
        result = next(steps)
    return found, result


@pytest.mark.parametrize(
    ("kind", "precision", "accumulate"),
    [(VectorQuantizer, "fp32", 1), (EMAVectorQuantizer, "bf16", 2), (VectorQuantizer, "fp16", 1)],
)
def test_a_step_reads_nothing_and_every_so_many_once(as_on_a_gpu, kind, precision, accumulate):
    state, steps = training(kind, precision=precision, accumulate=accumulate)
    for _ in range(3):
        next(steps)  # k-means starts the codebook, the discriminator begins to learn, its loss begins to count
    found, result = reads_of(steps)
    assert "adversarial" in result.loss.terms
    assert found == []
    found, result = reads_of(steps)
    assert (len(found), result.step) == (1, EVERY)
    with counted() as found:
        tokenizer_line(result, state.model.vocab_size, 0, 0.0)
    assert len(found) == 1


def test_the_counter_sees_what_a_cpu_reads():
    _, steps = training()
    for _ in range(2):
        next(steps)
    found, _ = reads_of(steps)
    assert {"_local_scalar_dense", "tolist"} <= set(found)


@pytest.mark.parametrize("bad", [2, 4])
def test_a_bad_step_changes_nothing_at_once_and_is_told_of_at_the_next_look(as_on_a_gpu, bad):
    state, steps = training(EMAVectorQuantizer, bad, on_non_finite="skip")
    for number in range(1, EVERY):
        before = whole(state)
        next(steps)
        assert same(before, whole(state)) == (number == bad), number
    skipped, complete = next(steps), next(steps)
    assert isinstance(skipped, SkippedStep)
    assert (skipped.step, complete.step, state.step, state.skipped) == (bad, EVERY, EVERY, 1)
    assert f"at step {bad}, on {bad}.png" in skipped.reason


def test_a_run_that_shall_stop_stays_what_it_was_before_the_bad_step(as_on_a_gpu):
    state, steps = training(bad=2)
    next(steps)
    before = whole(state)
    next(steps), next(steps)
    assert same(before, whole(state))
    next(steps)
    with pytest.raises(NonFiniteLossError, match=r"at step 2, on 2\.png"):
        next(steps)
    assert same(before, whole(state))
    assert state.step == 1


def whole(state) -> dict[str, torch.Tensor]:
    """A copy of everything that a checkpoint holds."""
    parts = {"trained": state.model, "average": state.averaged.model, "adversary": state.modules["adversary"]}
    tensors = {f"{p}.{n}": t.clone() for p, module in parts.items() for n, t in module.state_dict().items()}
    for number, optimizer in enumerate((state.optimizer, state.optimizers["adversary"])):
        for entry in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{entry[0]}.{name}": value.clone() for name, value in entry[1].items()}
    return tensors


def same(one: dict, other: dict) -> bool:
    """Whether the same weights are there with the same bytes; moments that do not exist yet count as zeros."""
    changed = [n for n, value in other.items() if not torch.equal(value, one.get(n, torch.zeros_like(value)))]
    return not changed


@pytest.mark.parametrize("kind", [small_priors.next_scale, small_priors.next_token, small_priors.masked])
def test_a_step_of_a_prior_reads_nothing(as_on_a_gpu, kind):
    prior = kind()
    config = OptimizationConfig(steps=4, batch_size=3)
    runtime = choose_runtime("cpu", "fp32", channels_last=False)
    stream = itertools.repeat(TokenBatch(*small_priors.sequences(prior)))
    state, objective = start_state(prior, config, runtime), PriorObjective(prior, runtime)
    steps = train_steps(state, stream, objective, config, runtime, look_every=EVERY)
    next(steps)
    with counted() as found:
        next(steps)
    # The objective checks tokens and labels on the CPU, where they come from / 词元与标签在送往设备之前于 CPU 上检查
    assert found == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_encoding_reads_nothing(as_on_a_gpu, dtype):
    model, image = tokenizer().eval(), next(batches()).image
    if dtype == torch.uint8:
        image = ((image + 1) * 127.5).to(dtype)
    with counted() as found:
        tokens = model.encode(image)
    assert found == []
    assert all((scale >= 0).all() for scale in tokens.indices)


@pytest.mark.parametrize("value", [float("nan"), 1.5])
def test_what_encoding_does_not_look_at_has_tokens_that_nothing_decodes(as_on_a_gpu, value):
    model, image = tokenizer().eval(), next(batches()).image
    expected = model.encode(image)
    image[1, 0, 3, 3] = value
    tokens = model.encode(image)
    for scale, right in zip(tokens.indices, expected.indices, strict=True):
        assert (scale[1] == -1).all()
        assert torch.equal(scale[[0, 2, 3]], right[[0, 2, 3]])
    with pytest.raises(ValueError, match=r"-1 .*non-finite or out-of-range values"):
        model.decode(tokens)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_step_runs_on_tensors_that_have_no_values(as_on_a_gpu, monkeypatch):
    """Model, losses, adversarial phase, optimizer and averages: whoever asks a fake tensor for a value gets an error.

    Fake tensors of the device cuda have a backward pass only where torch is built for CUDA, hence those of the CPU.
    """
    monkeypatch.setattr(Runtime, "move", lambda *_: None)  # fake parameters cannot be moved
    with FakeTensorMode():
        state, steps = training(EMAVectorQuantizer)
        state.averaged.model = tokenizer(EMAVectorQuantizer).requires_grad_(False).eval()  # its copy lost the mode
        state.model.quantizer.part(0).initialised = True
        state.step = 6
        result = next(steps)
    assert isinstance(result.loss.total, FakeTensor)
    assert {"l1", "adversarial"} <= set(result.loss.terms)
    assert set(result.discriminator.loss.terms) == {"discriminator", "r1", "lecam"}


COMPILED = """
from functools import partialmethod
from itertools import repeat
import torch
from smalti.data import Batch
from smalti.losses import LossTable
from smalti.quantizers import DeadCodeRevival, EMAVectorQuantizer, KMeansInit, MultiScaleQuantizer
from smalti.tokenizers import SimpleVQVAE
from smalti.training import (
    AdversarialConfig, GANTrainer, OptimizationConfig, TokenizerObjective, choose_runtime, start_state, train_steps
)

torch.manual_seed(0)
codebook = EMAVectorQuantizer(16, 4, init=KMeansInit(2), revival=DeadCodeRevival(0.5))
model = SimpleVQVAE(16, 4, 8, quantizer=MultiScaleQuantizer(16, 4, (1, 2, 4), quantizer=codebook)).train()
image = torch.rand(4, 3, 16, 16) * 2 - 1
for _ in range(3):
    model(image)
objective = TokenizerObjective(model, LossTable({"l1": 1.0}), choose_runtime("cpu", "fp32", channels_last=False))
before = {name: value.clone() for name, value in model.state_dict().items()}
compiled = torch.compile(objective, fullgraph=True, backend="eager")(image)[0]
model.load_state_dict(before)
torch.testing.assert_close(compiled, objective(image)[0])

runtime, config = choose_runtime("cpu", "fp32", compile=True), OptimizationConfig(steps=3)
torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")
state, losses = start_state(model, config, runtime), LossTable({"l1": 1.0, "adversarial": 0.5})
gan = GANTrainer(AdversarialConfig(hidden_dim=4, disc_start=1, disc_warmup=1), losses, state, config, runtime)
stream = repeat(Batch(image, ("a.png",) * 4, (None,) * 4))
*_, last = train_steps(state, stream, TokenizerObjective(model, losses, runtime), config, runtime, gan)
assert last.discriminator.adaptive_weight > 0
"""


def test_the_objective_is_one_graph_and_bears_the_second_backward_pass_of_the_adaptive_weight(clean):
    """In a process of its own, because the tests' import hook cannot be compiled."""
    ended = clean.run("-c", COMPILED)
    assert ended.returncode == 0, ended.stderr
