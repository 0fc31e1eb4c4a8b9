"""How quantizers learn: loss terms and gradients by hand, moving averages, revival, the soft choice."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.ops import tiles as tiles_module
from smalti.quantizers import (
    BinarySphericalQuantizer,
    DeadCodeRevival,
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
    SimVQ,
    VectorQuantizer,
    quantizer_from_config,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(z.double(), codebook.double()).argmin(dim=1)


# ---- gradient-learned codebooks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
@pytest.mark.parametrize("swap_beta", [False, True])
def test_vq_gradients_are_those_of_equation_3(beta: float, swap_beta: bool):
    vq = VectorQuantizer(8, 3, beta, swap_beta=swap_beta)
    z = torch.randn(20, 3, requires_grad=True)
    quantized, loss, indices = vq(z)
    e = vq.embedding.weight.detach()[indices]
    assert torch.equal(indices, nearest(z.detach(), vq.embedding.weight.detach()))
    assert torch.equal(quantized.detach(), e)
    loss.backward()
    codebook_weight, commitment_weight = (beta, 1.0) if swap_beta else (1.0, beta)
    pull = 2 * (z.detach() - e) / z.numel()
    torch.testing.assert_close(z.grad, commitment_weight * pull)
    expected = torch.zeros(8, 3).index_add_(0, indices, -codebook_weight * pull)
    torch.testing.assert_close(vq.embedding.weight.grad, expected)


QUANTIZERS_WITH_BETA: dict[str, Callable[[float], Quantizer]] = {
    "vq": lambda beta: VectorQuantizer(8, 4, beta),
    "cosine": lambda beta: VectorQuantizer(8, 4, beta, metric="cosine"),
    "simvq": lambda beta: SimVQ(8, 4, beta),
    "residual": lambda beta: ResidualQuantizer([VectorQuantizer(8, 4, beta) for _ in range(3)]),
    "grouped": lambda beta: GroupedQuantizer([VectorQuantizer(8, 2, beta)], num_groups=2),
    "multi-scale": lambda beta: MultiScaleQuantizer(8, 4, (1, 2, 3), beta),
    "multi-scale residual": lambda beta: MultiScaleQuantizer(
        8, 4, (1, 2, 3), beta, quantizer=ResidualQuantizer([VectorQuantizer(8, 4), VectorQuantizer(8, 4)])
    ),
}


@pytest.mark.parametrize("build", QUANTIZERS_WITH_BETA.values(), ids=QUANTIZERS_WITH_BETA)
def test_beta_0_spares_the_encoder_and_trains_the_codebook_in_full(build: Callable[[float], Quantizer]):
    free, bound = build(0.0), build(0.25)
    bound.load_state_dict(free.state_dict())
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    grads = []
    for quantizer in (free, bound):
        z.grad = None
        quantizer(z).loss.backward()
        grads.append((z.grad.clone(), [p.grad for p in quantizer.parameters() if p.grad is not None]))
    assert not grads[0][0].any()
    assert grads[1][0].any()
    assert any(grad.any() for grad in grads[0][1])
    for alone, together in zip(grads[0][1], grads[1][1], strict=True):
        torch.testing.assert_close(alone, together)


def test_simvq_turns_all_codes_and_keeps_its_basis():
    vq = SimVQ(64, 4)
    basis, codes = vq.embedding.weight.clone(), vq.get_codebook().detach()
    z = torch.randn(5, 4)  # chooses at most 5 of 64 codes
    quantized, loss, indices = vq(z)
    weight, bias = vq.embedding_proj.weight, vq.embedding_proj.bias
    torch.testing.assert_close(quantized, (basis @ weight.T + bias)[indices])
    assert torch.equal(indices, nearest(z, codes))
    loss.backward()
    torch.optim.SGD([p for p in vq.parameters() if p.requires_grad], lr=1.0).step()
    assert torch.equal(vq.embedding.weight, basis)
    assert (vq.get_codebook() != codes).any(dim=1).all()


# ---- moving averages, initialisation, revival -------------------------------------------------------------------


def test_ema_follows_the_papers_formula():
    vq = EMAVectorQuantizer(6, 3, decay=0.9)
    codebook = vq.embedding.weight.double().numpy().copy()
    count = np.full(6, 40 / 6)  # uniform usage by the first batch
    total = codebook * count[:, None]
    for step in range(5):
        z = torch.randn(40, 3, generator=torch.Generator().manual_seed(step))
        vectors = z.double().numpy()
        chosen = ((vectors[:, None] - codebook[None]) ** 2).sum(axis=2).argmin(axis=1)
        assert np.array_equal(vq(z).indices.numpy(), chosen)
        for i in range(6):
            count[i] = 0.9 * count[i] + 0.1 * (chosen == i).sum()
            total[i] = 0.9 * total[i] + 0.1 * vectors[chosen == i].sum(axis=0)
        codebook = total / count[:, None]
        np.testing.assert_allclose(vq.get_codebook().numpy(), codebook, rtol=1e-4, atol=1e-6)


def test_a_shared_codebook_learns_once_from_all_levels():
    base = EMAVectorQuantizer(6, 3, decay=0.9)
    shared = ResidualQuantizer([copy.deepcopy(base)], num_quantizers=3)
    z = torch.randn(50, 3)
    codebook = base.get_codebook()
    residual, vectors, chosen = z.clone(), [], []
    for _ in range(3):
        vectors.append(residual)
        chosen.append(nearest(residual, codebook))
        residual = residual - codebook[chosen[-1]]
    assert torch.equal(shared(z).indices, torch.stack(chosen, dim=1))
    base.learn(torch.cat(vectors), torch.cat(chosen))
    torch.testing.assert_close(shared.part(0).get_codebook(), base.get_codebook())
    torch.testing.assert_close(shared.part(0).cluster_size, base.cluster_size)


@pytest.mark.parametrize("num_codebooks", range(1, 8))
def test_any_number_of_codebooks_learns_from_all_its_scales(num_codebooks: int):
    codebook = EMAVectorQuantizer(4, 2, init=KMeansInit(batches=1), decay=0.0)
    quantizer = MultiScaleQuantizer(4, 2, (1, 2, 3, 4, 5, 6, 7), num_codebooks=num_codebooks, quantizer=codebook)
    quantizer(torch.randn(6, 2, 7, 7))
    seen = [int(part.cluster_size.sum()) for part in quantizer.quantizers]
    assert min(seen) >= 6
    assert sum(seen) == 6 * sum(side * side for side in quantizer.patch_nums)


LIVING = {"init": KMeansInit(batches=1), "revival": DeadCodeRevival()}
LIVING_QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "vq": lambda: VectorQuantizer(16, 4, **LIVING),
    "ema": lambda: EMAVectorQuantizer(16, 4, **LIVING),
    "ema cosine": lambda: EMAVectorQuantizer(16, 4, metric="cosine", **LIVING),
    "residual": lambda: ResidualQuantizer([EMAVectorQuantizer(16, 4, **LIVING) for _ in range(2)]),
    "shared residual": lambda: ResidualQuantizer([EMAVectorQuantizer(16, 4, **LIVING)], num_quantizers=2),
    "heads": lambda: GroupedQuantizer([EMAVectorQuantizer(16, 2, **LIVING)], num_groups=2),
    "projected": lambda: ProjectedQuantizer(4, EMAVectorQuantizer(16, 2, **LIVING)),
    "multi-scale": lambda: MultiScaleQuantizer(16, 4, (1, 2, 4), quantizer=EMAVectorQuantizer(16, 4, **LIVING)),
    "multi-scale, a codebook a scale": lambda: MultiScaleQuantizer(
        16, 4, (1, 2, 4), num_codebooks=3, quantizer=EMAVectorQuantizer(16, 4, **LIVING)
    ),
}


@pytest.mark.parametrize("build", LIVING_QUANTIZERS.values(), ids=LIVING_QUANTIZERS)
def test_a_dead_code_is_revived_and_survives_its_own_step(build: Callable[[], Quantizer]):
    quantizer = build()
    z = torch.randn(8, 4, 4, 4)
    quantizer(z)  # k-means
    tables = [m for m in quantizer.modules() if isinstance(m, VectorQuantizer | EMAVectorQuantizer)]
    far = 1e3
    for table in tables:
        with torch.no_grad():
            table.embedding.weight[[2, 5]] = far
            table.cluster_size[[2, 5]] = 1e-6
            if isinstance(table, EMAVectorQuantizer):
                table.embedding_sum[[2, 5]] = far * 1e-6
    quantizer(z)
    for table in tables:
        assert (table.embedding.weight.abs() < 10).all()  # both moved to vectors of the batch …
        uniform = table.cluster_size.mean()
        assert (table.cluster_size[[2, 5]] > 0.5 * uniform).all()
        assert not torch.equal(table.embedding.weight[2], table.embedding.weight[5])  # … to different ones
        if isinstance(table, EMAVectorQuantizer):
            mean = table.embedding_sum / table.cluster_size.unsqueeze(1)
            torch.testing.assert_close(table.project(mean), table.embedding.weight.data)
    # and they are chosen
    for table in tables:
        before = table.cluster_size[[2, 5]].clone()
        quantizer(z)
        assert (table.cluster_size[[2, 5]] > 0.9 * before * 0.99).all()


def test_revival_needs_as_many_vectors_as_dead_codes():
    vq = VectorQuantizer(32, 4, revival=DeadCodeRevival())
    vq.batches_seen.fill_(1)
    vq.cluster_size[:20] = 0
    z = torch.randn(7, 4) + 50
    vq(z)
    moved = (vq.embedding.weight > 40).all(dim=1)
    assert moved.sum() == 7
    assert vq.embedding.weight[moved].unique(dim=0).shape[0] == 7


def test_k_means_uses_every_code_of_every_level():
    rq = ResidualQuantizer([EMAVectorQuantizer(16, 4, **LIVING) for _ in range(3)])
    z = torch.randn(512, 4)
    rq(z)
    for level in range(3):
        assert rq.encode(z)[:, level].unique().numel() == 16


# ---- index back-propagation and Gumbel --------------------------------------------------------------------------


@pytest.mark.parametrize("tile_entries", [2**23, 12 * 10])
def test_ibq_equals_its_dense_formula(tile_entries: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles_module, "TILE_ENTRIES", tile_entries)
    ibq = IndexBackpropagationQuantizer(12, 3, 0.25, entropy_weight=0.05, entropy_temperature=0.5)
    z = torch.randn(30, 3, requires_grad=True)
    g = torch.randn(30, 3)
    quantized, loss, indices = ibq(z)
    e = ibq.embedding.weight
    logits = z @ e.T
    soft = logits.softmax(dim=1)
    hard = F.one_hot(logits.argmax(dim=1), 12).float()
    z_q, z_q2 = (hard - soft.detach() + soft) @ e, hard @ e
    p = (logits / 0.5).softmax(dim=1)
    entropies = -(p * p.log()).sum(dim=1).mean() + np.log(12) + (p.mean(dim=0) * p.mean(dim=0).log()).sum()
    expected = (
        F.mse_loss(z_q, z) + F.mse_loss(z_q2, z.detach()) + 0.25 * F.mse_loss(z_q2.detach(), z) + 0.05 * entropies
    )
    torch.testing.assert_close(quantized, z_q)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(indices, logits.argmax(dim=1))
    ours = torch.autograd.grad(loss + (quantized * g).sum(), (z, e), retain_graph=True)
    dense = torch.autograd.grad(expected + (z_q * g).sum(), (z, e))
    torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-6)
    assert (ours[1] != 0).any(dim=1).all()  # every code is moved


@pytest.mark.parametrize("straight_through", [True, False])
def test_gumbel_equals_torchs_gumbel_softmax(straight_through: bool):
    vq = GumbelQuantizer(12, 3, straight_through=straight_through, temperature=0.7)
    z = torch.randn(30, 3, requires_grad=True)
    g = torch.randn(30, 3)
    parameters = (z, vq.proj.weight, vq.proj.bias, vq.embedding.weight)
    torch.manual_seed(4)
    output = vq(z)
    torch.manual_seed(4)
    logits = F.linear(z, vq.proj.weight, vq.proj.bias)
    one_hot = F.gumbel_softmax(logits, tau=0.7, hard=straight_through)
    z_q = one_hot @ vq.embedding.weight
    torch.testing.assert_close(output.quantized, z_q)
    assert torch.equal(output.indices, one_hot.argmax(dim=1))
    uniform = torch.distributions.Categorical(logits=torch.zeros(12))
    kl = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=logits), uniform).mean()
    torch.testing.assert_close(output.terms["kl"], kl)
    ours = torch.autograd.grad(output.loss + (output.quantized * g).sum(), parameters)
    dense = torch.autograd.grad(5e-4 * kl + (z_q * g).sum(), parameters)
    torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-6)


def test_gumbel_draws_from_the_softmax_and_decides_in_eval():
    vq = GumbelQuantizer(5, 3)
    z = torch.randn(1, 3).expand(20_000, 3)
    p = F.linear(z[:1], vq.proj.weight, vq.proj.bias).softmax(dim=1)[0]
    frequency = vq(z).indices.bincount(minlength=5) / 20_000
    assert (frequency - p).abs().max() < 4 * 0.5 / 20_000**0.5
    assert vq.eval()(z).indices.unique().tolist() == [int(p.argmax())]


def test_gumbel_anneals_along_half_a_cosine():
    """From 1 to 1/16 in the first half of a training; an older model, saved without the setting, stays constant."""
    vq, found = GumbelQuantizer(5, 3), []
    for done in (0.0, 0.125, 0.25, 0.5, 0.9):
        vq.set_progress(done)
        found.append(float(vq.temperature))
    middle, quarter = 17 / 32, 15 / 32 * 0.5**0.5  # the cosine at 45 degrees
    assert found == pytest.approx([1, middle + quarter, middle, 1 / 16, 1 / 16])
    assert "temperature" in vq.state_dict()
    older = quantizer_from_config({"type": "GumbelQuantizer", "num_embeddings": 5, "embedding_dim": 3})
    older.set_progress(1.0)
    assert float(older.temperature) == 1


# ---- all of them ------------------------------------------------------------------------------------------------

BASES: dict[str, Callable[[], PointwiseQuantizer]] = {
    "vq": lambda: VectorQuantizer(32, 4, **LIVING),
    "vq-cosine-rotation": lambda: VectorQuantizer(32, 4, metric="cosine", gradient="rotation", **LIVING),
    "ema": lambda: EMAVectorQuantizer(32, 4, **LIVING),
    "simvq": lambda: SimVQ(32, 4),
    "ibq": lambda: IndexBackpropagationQuantizer(32, 4),
    "gumbel": lambda: GumbelQuantizer(32, 4),
    "fsq": lambda: FiniteScalarQuantizer([5, 5, 5, 5]),
    "lfq": lambda: LookupFreeQuantizer(4),
    "bsq": lambda: BinarySphericalQuantizer(4),
}


@pytest.mark.parametrize("base", BASES)
def test_200_steps_under_autocast_stay_finite_and_learn(base: str):
    """A tiny autoencoder whose latents start out large, in bf16 and fp16 in turn."""
    quantizer = BASES[base]()
    encoder, decoder = torch.nn.Linear(8, 4), torch.nn.Linear(4, 8)
    with torch.no_grad():
        encoder.weight.mul_(20)
    model = torch.nn.ModuleList([encoder, quantizer, decoder])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    centres = torch.randn(16, 8)
    losses = []
    for step in range(200):
        dtype = (torch.bfloat16, torch.float16)[step % 2]
        x = centres[torch.arange(64) % 16] + 0.1 * torch.randn(64, 8)
        with torch.autocast("cpu", dtype=dtype):
            output = quantizer(encoder(x))
            reconstruction = F.mse_loss(decoder(output.quantized).float(), x)
        assert output.quantized.dtype == dtype
        optimizer.zero_grad()
        (reconstruction + output.loss).backward()
        optimizer.step()
        losses.append(reconstruction.item())
        assert np.isfinite(losses[-1]), step
        assert output.loss.isfinite(), step
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
