"""Residual, grouped, projected and multi-scale quantizers, against doing by hand what they do with their parts."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.quantizers import (
    BinarySphericalQuantizer,
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    IndexBackpropagationQuantizer,
    KMeansInit,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    PointwiseQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    quantizer_from_config,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def jacobian(quantizer: Quantizer, z: Tensor) -> Tensor:
    """d quantized / d z of one vector, (D, D)."""
    return torch.autograd.functional.jacobian(lambda x: quantizer(x.unsqueeze(0)).quantized[0], z)


# ---- residual ---------------------------------------------------------------------------------------------------


def test_residual_is_the_loop_over_levels():
    rq = ResidualQuantizer([VectorQuantizer(8, 3) for _ in range(4)]).eval()
    for q in range(4):
        rq.part(q).embedding.weight.data.normal_(std=0.5**q)
    z = torch.randn(30, 3)
    output = rq(z)
    total, terms = torch.zeros(30, 3), []
    for q in range(4):
        codebook = rq.part(q).embedding.weight.detach()
        indices = torch.cdist((z - total).double(), codebook.double()).argmin(dim=1)
        assert torch.equal(output.indices[:, q], indices)
        total = total + codebook[indices]
        terms.append(F.mse_loss(total, z))  # as RQ-VAE: the latent against every partial sum
        torch.testing.assert_close(rq.decode(output.indices[:, : q + 1]), total)
        torch.testing.assert_close(rq.decode_progressive(output.indices)[q], total)
    torch.testing.assert_close(output.quantized, total)
    torch.testing.assert_close(output.terms["commitment"], torch.stack(terms).mean())
    torch.testing.assert_close(output.terms["codebook"], torch.stack(terms).mean())


def test_every_residual_level_commits_the_encoder():
    """The gradient of the commitment is that of ‖z − sg[partial sum]‖² of every level; none is lost on the way."""
    rq = ResidualQuantizer([VectorQuantizer(8, 3) for _ in range(3)]).eval()
    z = torch.randn(10, 3, requires_grad=True)
    output = rq(z)
    (grad,) = torch.autograd.grad(output.terms["commitment"], z)
    expected = sum(2 * (z - partial) / z.numel() / 3 for partial in rq.decode_progressive(output.indices))
    torch.testing.assert_close(grad, expected.detach())


LEVELS: dict[str, Callable[[], PointwiseQuantizer]] = {
    "vq": lambda: VectorQuantizer(32, 4, init=KMeansInit(batches=1)),
    "cosine": lambda: VectorQuantizer(32, 4, metric="cosine", init=KMeansInit(batches=1)),
    "ema": lambda: EMAVectorQuantizer(32, 4, init=KMeansInit(batches=1)),
    "fsq": lambda: FiniteScalarQuantizer([8, 5, 5, 5]),
    "fsq even": lambda: FiniteScalarQuantizer([4, 4, 6, 6]),
    "lfq": lambda: LookupFreeQuantizer(4),
    "bsq": lambda: BinarySphericalQuantizer(4),
    "heads": lambda: GroupedQuantizer([FiniteScalarQuantizer([5, 7])], num_groups=2),
    "nested": lambda: ResidualQuantizer([FiniteScalarQuantizer([5, 4, 5, 4]) for _ in range(2)]),
}


@pytest.mark.parametrize("build", LEVELS.values(), ids=LEVELS)
def test_each_residual_level_brings_the_code_closer(build: Callable[[], PointwiseQuantizer]):
    rq = ResidualQuantizer([build() for _ in range(4)])
    z = torch.randn(512, 4) * 0.7
    rq(z)  # k-means
    rq.eval()
    target = rq.project(z)
    errors = [(partial - target).square().mean().item() for partial in rq.decode_progressive(rq.encode(z))]
    for coarse, fine in itertools.pairwise(errors):
        assert fine < 0.6 * coarse, errors


def test_hard_levels_pass_the_gradient_straight_through():
    rq = ResidualQuantizer([VectorQuantizer(8, 3) for _ in range(3)])
    torch.testing.assert_close(jacobian(rq, torch.randn(3)), torch.eye(3))


def test_soft_levels_follow_the_chain_rule():
    """Through linear layers: level q sees z − (P_0 + …) z, so d quantized / d z = I − (I − P_2)(I − P_1)(I − P_0)."""
    rq = ResidualQuantizer([ProjectedQuantizer(4, VectorQuantizer(8, 2)) for _ in range(3)])
    rest = torch.eye(4)
    for level in rq.quantizers:
        rest = (torch.eye(4) - level.project_out.weight @ level.project_in.weight) @ rest
    torch.testing.assert_close(jacobian(rq, torch.randn(4)), torch.eye(4) - rest.detach())


def test_quantizer_dropout_shows_a_prefix_and_still_teaches_all_levels():
    rq = ResidualQuantizer([EMAVectorQuantizer(8, 3) for _ in range(4)], quantizer_dropout=1.0)
    seen = set()
    for _ in range(60):
        z = torch.randn(16, 3)
        prefixes = copy.deepcopy(rq).eval().decode_progressive(rq.encode(z))
        before = [level.cluster_size.clone() for level in rq.quantizers]
        output = rq.train()(z)
        seen |= {n for n, prefix in enumerate(prefixes) if torch.allclose(prefix, output.quantized)}
        assert output.indices.shape == (16, 4)
        assert all((level.cluster_size != old).any() for level, old in zip(rq.quantizers, before, strict=True))
    assert seen == {0, 1, 2, 3}
    z = torch.randn(16, 3)
    assert torch.equal(rq.eval()(z).quantized, rq.decode(rq.encode(z)))


@torch.no_grad()
@pytest.mark.usefixtures("unchecked")
def test_quantizer_dropout_is_a_probability():
    rq = ResidualQuantizer([VectorQuantizer(8, 3) for _ in range(4)], quantizer_dropout=0.4)
    z = torch.randn(16, 3)
    full = rq.decode(rq.encode(z))
    shortened = sum(not torch.equal(rq(z).quantized, full) for _ in range(400)) / 400
    assert abs(shortened - 0.4 * 3 / 4) < 4 * (0.3 * 0.7 / 400) ** 0.5  # a draw of all 4 levels shortens nothing


# ---- grouped and projected --------------------------------------------------------------------------------------


def test_groups_are_quantizers_of_their_own_channels():
    parts = [EMAVectorQuantizer(8, 2) for _ in range(3)]
    pq, alone = GroupedQuantizer(parts), copy.deepcopy(parts)
    for _ in range(3):
        z = torch.randn(2, 6, 4, 5)
        output = pq(z)
        outputs = [quantizer(z[:, 2 * g : 2 * g + 2]) for g, quantizer in enumerate(alone)]
        assert torch.equal(output.quantized, torch.cat([o.quantized for o in outputs], dim=1))
        assert torch.equal(output.indices, torch.stack([o.indices for o in outputs], dim=-1))
        torch.testing.assert_close(output.loss, torch.stack([o.loss for o in outputs]).mean())
    for part, quantizer in zip(pq.quantizers, alone, strict=True):
        assert torch.equal(part.embedding.weight, quantizer.embedding.weight)
    assert pq.get_codebook().shape == (3, 8, 2)


def test_shared_heads_equal_one_quantizer_on_all_channels_as_positions():
    base = EMAVectorQuantizer(8, 2)
    heads, alone = GroupedQuantizer([copy.deepcopy(base)], num_groups=3), base
    z = torch.randn(50, 6)
    output = heads(z)
    expected = alone(torch.cat(z.split(2, dim=1)))
    assert torch.equal(torch.cat(output.indices.unbind(dim=1)), expected.indices)
    torch.testing.assert_close(heads.part(0).embedding.weight, alone.embedding.weight)


def test_projected_is_down_quantize_up():
    vq = ProjectedQuantizer(6, VectorQuantizer(8, 2, metric="cosine"))
    z = torch.randn(40, 6, requires_grad=True)
    output = vq(z)
    low = F.normalize(z @ vq.project_in.weight.T + vq.project_in.bias, dim=1)
    codebook = F.normalize(vq.quantizer.embedding.weight, dim=1)
    indices = (low @ codebook.T).argmax(dim=1)
    assert torch.equal(output.indices, indices)
    up = codebook[indices] @ vq.project_out.weight.T + vq.project_out.bias
    torch.testing.assert_close(output.quantized, up)
    torch.testing.assert_close(output.terms["commitment"], F.mse_loss(low, codebook[indices]))
    # straight through between the layers: the Jacobian is up · (d normalise / d z) · down
    expected = torch.autograd.grad((low @ vq.project_out.weight.T).sum(), z, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(output.quantized.sum(), z)[0], expected)
    torch.testing.assert_close(vq.get_codebook(), codebook @ vq.project_out.weight.T + vq.project_out.bias)


# ---- multi-scale ------------------------------------------------------------------------------------------------


def test_equal_sides_without_phi_are_a_shared_residual_quantizer():
    base = EMAVectorQuantizer(8, 3)
    ms = MultiScaleQuantizer(8, 3, (4, 4, 4), phi_ratio=0.0, quantizer=copy.deepcopy(base))
    rq = ResidualQuantizer([copy.deepcopy(base)], num_quantizers=3)
    z = torch.randn(2, 3, 4, 4)
    scales, levels = ms(z), rq(z)
    torch.testing.assert_close(scales.quantized, levels.quantized)
    assert torch.equal(torch.stack(scales.indices, dim=-1), levels.indices)
    torch.testing.assert_close(scales.terms["commitment"], levels.terms["commitment"])
    torch.testing.assert_close(ms.get_codebook(), rq.get_codebook()[0])


@pytest.mark.parametrize("inner", [LookupFreeQuantizer(4), BinarySphericalQuantizer(4)])
def test_multi_scale_keeps_the_entropies_and_hands_them_to_the_encoder(inner: PointwiseQuantizer):
    ms = MultiScaleQuantizer(16, 4, (1, 2, 3), quantizer=inner)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    output = ms(z)
    assert set(output.terms) == {"codebook", "commitment", "sample_entropy", "codebook_divergence"}
    assert output.weights["codebook_divergence"] == inner.weights()["codebook_divergence"]
    for name in ("sample_entropy", "codebook_divergence"):
        assert torch.autograd.grad(output.terms[name], z, retain_graph=True)[0].any()
    f = inner.project(z.movedim(1, -1).reshape(-1, 4)).reshape(2, 3, 3, 4).movedim(-1, 1)
    expected = torch.stack([F.mse_loss(f_hat, f) for f_hat in ms.decode_progressive(output.indices)]).mean()
    torch.testing.assert_close(output.terms["commitment"], expected)


@pytest.mark.parametrize(
    "inner",
    [
        ProjectedQuantizer(4, VectorQuantizer(16, 2)),
        IndexBackpropagationQuantizer(16, 4),
        GumbelQuantizer(16, 4),
        GroupedQuantizer([VectorQuantizer(16, 2), VectorQuantizer(16, 2)]),
        ResidualQuantizer([VectorQuantizer(16, 4), VectorQuantizer(16, 4)]),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_multi_scale_trains_what_lies_inside(inner: PointwiseQuantizer):
    """Every parameter of the inner quantizer moves, and the reconstruction error falls."""
    ms = MultiScaleQuantizer(16, 4, (1, 2, 4), num_phi=2, quantizer=inner)
    z = torch.randn(8, 4, 4, 4)
    before = copy.deepcopy(ms)
    optimizer = torch.optim.Adam(ms.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        output = ms.train()(z)
        (output.loss + F.mse_loss(output.quantized, z)).backward()
        optimizer.step()
    for (name, new), old in zip(ms.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(new, old), name
    errors = [F.mse_loss(quantizer.eval()(z).quantized, z).item() for quantizer in (before, ms)]
    assert errors[1] < 0.8 * errors[0]


def test_usage_is_kept_per_scale_and_level():
    inner = ResidualQuantizer([EMAVectorQuantizer(8, 3, decay=0.0) for _ in range(2)])
    inner.decay = 0.0
    ms = MultiScaleQuantizer(8, 3, (1, 2), quantizer=inner)
    output = ms(torch.randn(5, 3, 2, 2))
    assert ms.scale_usage is not None
    for k, indices in enumerate(output.indices):
        for level in range(2):
            expected = indices[..., level].flatten().bincount(minlength=8).float()
            assert torch.equal(ms.scale_usage[k, level], expected)


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResidualQuantizer([]), "quantizers"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 3)] * 2, num_quantizers=3), "num_quantizers=3"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 3), VectorQuantizer(9, 3)]), "got num_embeddings 8"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 3), VectorQuantizer(8, 4)]), "got embedding_dim 3"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 3), VectorQuantizer(8, 3, 0.5)]), "loss weights"),
        (lambda: GroupedQuantizer([VectorQuantizer(8, 3), GumbelQuantizer(8, 3)]), "got soft False"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 3)], quantizer_dropout=1.5), "quantizer_dropout"),
        (lambda: ProjectedQuantizer(0, VectorQuantizer(8, 3)), "embedding_dim"),
        (lambda: MultiScaleQuantizer(9, 3, (1, 2), quantizer=VectorQuantizer(8, 3)), "8 codes"),
        (
            lambda: quantizer_from_config({"type": "SimVQ", "num_embeddings": 8, "embedding_dim": 4, "revival": None}),
            "'revival'",
        ),
        (lambda: quantizer_from_config({"type": "Residual"}), "expected a mapping with type one of"),
        (lambda: EMAVectorQuantizer(8, 3, swap_beta=True), "swap_beta"),
    ],
)
def test_impossible_compositions_are_refused(build: Callable[[], Quantizer], message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_indices_of_the_wrong_shape_are_refused():
    rq = ResidualQuantizer([VectorQuantizer(8, 4) for _ in range(3)])
    for shape in [(2, 5, 5), (2, 5, 5, 4), (2, 5, 5, 0), (3,)]:
        with pytest.raises(ValueError, match=r"expected \(B, \*spatial, 3\)"):
            rq.decode(torch.zeros(shape, dtype=torch.int64))
    pq = GroupedQuantizer([VectorQuantizer(8, 2) for _ in range(2)])
    with pytest.raises(ValueError, match=r"expected \(B, \*spatial, 2\)"):
        pq.decode(torch.zeros(2, 5, 1, dtype=torch.int64))
    ms = MultiScaleQuantizer(8, 4, (1, 2), quantizer=rq)
    with pytest.raises(ValueError, match=r"expected \(B, h_k, w_k, 3\)"):
        ms.decode(tuple(torch.zeros(2, k, k, dtype=torch.int64) for k in (1, 2)))
