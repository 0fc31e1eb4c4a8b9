"""NaN, infinities and zeros: in padding, in statistics, in what is encoded, and the gradient of a latent of zeros."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smalti.quantizers import (
    BinarySphericalQuantizer,
    CodebookQuantizer,
    DeadCodeRevival,
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    KMeansInit,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    ZNormVectorQuantizer,
)
from smalti.tokenizers import SimpleVQVAE

BAD = (float("nan"), float("inf"), float("-inf"))
MAKERS: dict[str, Callable[[], Quantizer]] = {
    "vq": lambda: VectorQuantizer(16, 4),
    "vq cosine rotation": lambda: VectorQuantizer(16, 4, metric="cosine", gradient="rotation"),
    "znorm": lambda: ZNormVectorQuantizer(16, 4),
    "ema alive": lambda: EMAVectorQuantizer(16, 4, init=KMeansInit(batches=1), revival=DeadCodeRevival(0.9)),
    "simvq rotation": lambda: SimVQ(16, 4, gradient="rotation"),
    "ibq": lambda: IndexBackpropagationQuantizer(16, 4),
    "gumbel": lambda: GumbelQuantizer(16, 4),
    "fsq": lambda: FiniteScalarQuantizer([5, 4, 3, 2]),
    "lfq": lambda: LookupFreeQuantizer(4),
    "bsq": lambda: BinarySphericalQuantizer(4),
    "projected": lambda: ProjectedQuantizer(4, VectorQuantizer(16, 2, metric="cosine")),
    "residual": lambda: ResidualQuantizer([EMAVectorQuantizer(16, 4, metric="cosine") for _ in range(2)]),
    "residual fsq": lambda: ResidualQuantizer([FiniteScalarQuantizer([4, 4, 5, 5])], num_quantizers=2),
    "grouped": lambda: GroupedQuantizer([GumbelQuantizer(16, 2)], num_groups=2),
    "multi-scale": lambda: MultiScaleQuantizer(16, 4, (1, 2, 3), quantizer=BinarySphericalQuantizer(4)),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def latent() -> Tensor:
    return torch.randn(3, 4, 3, 3)


@EVERY
def test_masked_values_leak_nowhere(make: Callable[[], Quantizer]) -> None:
    """Nothing of a NaN or an infinity in the padding comes out: not in `quantized`, not in any gradient."""
    quantizer = make().train()
    z = latent()
    mask = torch.rand(z.shape[0], *z.shape[2:], generator=torch.Generator().manual_seed(1)) > 0.3
    for bad in BAD:
        padded = torch.where(mask.unsqueeze(1), z, torch.tensor(bad)).requires_grad_()
        output = quantizer(padded, mask)
        (output.loss + output.quantized.square().sum()).backward()
        assert output.quantized.isfinite().all()
        assert padded.grad.isfinite().all()
        assert not padded.grad.movedim(1, -1)[~mask].any()
        assert all(p.grad.isfinite().all() for p in quantizer.parameters() if p.grad is not None)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])
def test_a_vector_that_is_not_finite_enters_no_statistics(
    cls: type[CodebookQuantizer], metric: str, bad: float
) -> None:
    """Averages, start and revival are those of the batch without it; the loss tells of it."""
    alive = {"init": KMeansInit(batches=2, iterations=3), "revival": DeadCodeRevival(0.9), "decay": 0.5}
    vq = cls(8, 4, metric=metric, **alive)
    clean = copy.deepcopy(vq)
    for step in range(5):
        z = torch.randn(1, 4, 40)
        spoiled = torch.cat([z, torch.full((1, 4, 1), bad)], dim=2)
        torch.manual_seed(step)
        assert not vq(spoiled).loss.isfinite()
        torch.manual_seed(step)
        clean(z)
        assert all(value.isfinite().all() for value in vq.state_dict().values())
    assert vq.eval()(z).loss < 3 * clean.eval()(z).loss
    plain, without = cls(8, 4, metric=metric), cls(8, 4, metric=metric)
    without.load_state_dict(plain.state_dict())
    plain.batches_seen.fill_(1)
    without.batches_seen.fill_(1)
    plain(spoiled), without(z)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, without.state_dict()[name]), name


@EVERY
@pytest.mark.parametrize("bad", BAD)
def test_encoding_refuses_what_is_not_finite(make: Callable[[], Quantizer], bad: float) -> None:
    quantizer = make().eval()
    z = latent()
    z[1, 2] = bad
    with pytest.raises(ValueError, match="z: got non-finite values"):
        quantizer.encode(z)
    indices = quantizer(z).indices  # a forward pass goes through, and its indices can be looked up
    quantizer.decode(indices)


def test_a_network_that_gives_nan_is_an_error_of_encode() -> None:
    for tokenizer in (SimpleVQVAE(8, 4, 8), SimpleVQVAE(8, 4, 8, patch_nums=(1, 2))):
        next(tokenizer.encoder.parameters()).data.fill_(torch.nan)
        with pytest.raises(ValueError, match="z: got non-finite values"):
            tokenizer.eval().encode(torch.zeros(1, 3, 8, 8))


SPHERES = {
    "cosine": lambda: VectorQuantizer(16, 4, metric="cosine"),
    "cosine rotation": lambda: EMAVectorQuantizer(16, 4, metric="cosine", gradient="rotation"),
    "bsq": lambda: BinarySphericalQuantizer(4),
    "multi-scale": lambda: MultiScaleQuantizer(16, 4, (1, 3), quantizer=VectorQuantizer(16, 4, metric="cosine")),
}


@pytest.mark.parametrize("make", SPHERES.values(), ids=SPHERES)
@pytest.mark.parametrize("length", [0.0, 1e-12, 1e-8, 1e-6])
def test_latents_without_length_have_a_finite_gradient(make: Callable[[], Quantizer], length: float) -> None:
    z = (torch.nn.functional.normalize(torch.randn(2, 4, 3, 3), dim=1) * length).requires_grad_()
    output = make().train()(z)
    (output.loss + output.quantized.sum()).backward()
    assert z.grad.half().isfinite().all()
    assert z.grad.abs().max() < 1e2


def test_the_gradient_of_the_sphere_is_that_of_normalize() -> None:
    z = torch.randn(50, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: BinarySphericalQuantizer(5).project(z), z)
