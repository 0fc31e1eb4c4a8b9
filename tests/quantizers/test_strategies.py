"""How a codebook starts (k-means on the first batches) and stays alive (revival of dead codes)."""

import pytest
import torch
from torch import Tensor, nn

from smalti.quantizers import (
    CodebookQuantizer,
    DeadCodeRevival,
    EMAVectorQuantizer,
    KMeansInit,
    MultiScaleQuantizer,
    VectorQuantizer,
)

BOTH = pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])


def assert_counts_agree(vq: CodebookQuantizer) -> None:
    """Of a moving-average codebook: sum / count is the code, for every code that counts."""
    if isinstance(vq, EMAVectorQuantizer):
        counted = vq.cluster_size > 1e-6
        mean = vq.embedding_sum[counted] / vq.cluster_size[counted].unsqueeze(1)
        torch.testing.assert_close(mean, vq.embedding.weight[counted], atol=1e-5, rtol=1e-4)


def among(codes: Tensor, vectors: Tensor) -> Tensor:
    """Which rows of `codes` are, bit for bit, rows of `vectors`."""
    return (codes[:, None] == vectors[None]).all(-1).any(-1)


# ---- k-means initialisation ------------------------------------------------------------------------------------------


@BOTH
def test_starts_at_the_data(cls: type[CodebookQuantizer]) -> None:
    """Data far from the random start: already the first forward pass quantizes it well, with every code in use."""
    vq = cls(16, 3, init=KMeansInit(batches=1, iterations=30))
    z = torch.randn(4, 3, 100) + torch.tensor([500.0, -300.0, 40.0])[:, None]
    output = vq(z)
    assert output.terms["commitment"] < 0.5  # variance 1; before: about 1e5
    vectors, indices = z.movedim(1, -1).reshape(-1, 3), output.indices.flatten()
    assert indices.unique().numel() == 16
    means = torch.stack([vectors[indices == k].mean(0) for k in range(16)])
    torch.testing.assert_close(vq.get_codebook().detach(), means, atol=0.2, rtol=0)
    counts = torch.bincount(indices, minlength=16).float()
    torch.testing.assert_close(vq.cluster_size, counts, atol=8.0, rtol=0)
    assert vq.cluster_size.sum().item() == pytest.approx(400, rel=1e-4)
    assert_counts_agree(vq)


@BOTH
def test_usage_does_not_fall_at_the_steps_after(cls: type[CodebookQuantizer]) -> None:
    """Sums and counts on different scales would throw codes far away at step two."""
    vq = cls(32, 4, init=KMeansInit(batches=2))
    for _ in range(8):
        output = vq(torch.randn(8, 4, 64) + 7)
        assert output.indices.unique().numel() >= 30
        assert output.terms["commitment"] < 1
        assert_counts_agree(vq)


@BOTH
def test_ends_after_its_batches(cls: type[CodebookQuantizer]) -> None:
    vq = cls(8, 4, init=KMeansInit(batches=2), decay=0.999)
    for batch in range(3):
        before = vq.embedding.weight.detach().clone()
        vq(torch.randn(1, 4, 200) + 100 * (batch + 1))
        moved = (vq.embedding.weight.detach() - before).norm(dim=1).max()
        assert (moved > 50) == (batch < 2)


@BOTH
def test_eval_and_frozen_and_all_masked_batches_do_not_start_it(cls: type[CodebookQuantizer]) -> None:
    vq = cls(8, 4, init=KMeansInit(batches=1))
    start = vq.embedding.weight.detach().clone()
    z = torch.randn(2, 4, 50) + 9
    vq.eval()(z)
    vq.train()(z, mask=torch.zeros(2, 50, dtype=torch.bool))
    assert torch.equal(vq.embedding.weight, start)
    vq(z)
    assert (vq.embedding.weight - start).norm(dim=1).min() > 1
    frozen = cls(8, 4, init=KMeansInit(batches=1))
    start = frozen.embedding.weight.detach().clone()
    frozen.freeze()
    frozen(z)
    assert torch.equal(frozen.embedding.weight, start)


@BOTH
def test_fewer_vectors_than_codes(cls: type[CodebookQuantizer]) -> None:
    vq = cls(32, 4, init=KMeansInit(batches=1))
    z = torch.randn(1, 4, 5)
    output = vq(z)
    assert output.terms["commitment"] < 1e-10
    distance = (vq.embedding.weight.detach()[:, None] - z[0].T[None]).abs().sum(-1).min(1).values
    assert distance.max() < 1e-5
    assert_counts_agree(vq)


def test_cosine_starts_on_the_sphere() -> None:
    vq = EMAVectorQuantizer(8, 4, metric="cosine", init=KMeansInit(batches=1))
    output = vq(torch.randn(2, 4, 100) * 50)
    torch.testing.assert_close(vq.get_codebook().norm(dim=1), torch.ones(8))
    assert output.indices.unique().numel() == 8
    assert vq.cluster_size.sum().item() == pytest.approx(200, rel=1e-4)


def test_multi_scale_starts_at_the_residuals_of_all_scales() -> None:
    vq = MultiScaleQuantizer(
        32, 4, (1, 2, 4), quantizer=EMAVectorQuantizer(32, 4, init=KMeansInit(batches=3), revival=DeadCodeRevival())
    )
    z = torch.randn(16, 4, 4, 4) + torch.tensor([20.0, 0.0, -10.0, 5.0])[:, None, None]
    before = vq.eval()(z).terms["commitment"]
    vq.train()
    for _ in range(4):
        output = vq(z)
    assert output.terms["commitment"] < 0.2 * before
    assert torch.cat([i.flatten() for i in output.indices]).unique().numel() > 24
    assert_counts_agree(vq.quantizers[0])


# ---- revival of dead codes -------------------------------------------------------------------------------------------


def with_dead_codes(cls: type[CodebookQuantizer], **options: object) -> CodebookQuantizer:
    """Eight codes: four near the data around zero, four so far away that nothing ever chooses them."""
    vq = cls(8, 3, **options)
    codes = torch.randn(8, 3) * 0.5
    codes[4:] += 1000
    vq.embedding.weight.data.copy_(codes)
    if isinstance(vq, EMAVectorQuantizer):
        vq.embedding_sum.copy_(codes * vq.cluster_size.unsqueeze(1))
    return vq


def steps_until_revival(vq: CodebookQuantizer, num_vectors: int, most: int = 2000) -> Tensor:
    """Feed batches until a far code moved; returns that batch's vectors as rows."""
    for _ in range(most):
        z = torch.randn(1, 3, num_vectors)
        vq(z)
        if vq.embedding.weight[4:].min() < 500:
            return z[0].T
    raise AssertionError(f"no code revived in {most} steps")


@BOTH
def test_no_code_is_revived_in_the_last_fifth_of_a_training(cls: type[CodebookQuantizer]) -> None:
    vq = with_dead_codes(cls, revival=DeadCodeRevival(0.1), decay=0.5)
    far = vq.embedding.weight[4:].clone()
    vq.set_progress(0.81)
    for _ in range(30):
        vq(torch.randn(1, 3, 32))
    assert torch.equal(vq.embedding.weight[4:], far)
    vq.set_progress(0.79)  # the next training begins
    steps_until_revival(vq, 32, most=1)


@BOTH
@pytest.mark.parametrize("num_vectors", [32, 256, 4096])
def test_a_dead_code_becomes_a_vector_of_the_batch(cls: type[CodebookQuantizer], num_vectors: int) -> None:
    vq = with_dead_codes(cls, revival=DeadCodeRevival(0.1), decay=0.9)
    vectors = steps_until_revival(vq, num_vectors)
    revived = vq.embedding.weight.detach()[4:]
    # It survived the step in which it was revived: the code is the vector itself, not an average with its past.
    assert among(revived, vectors).all()
    assert revived.unique(dim=0).shape[0] == 4  # four codes, four different vectors
    # Vector, sum and count are reset together.
    assert_counts_agree(vq)
    uniform = vq.cluster_size.sum() / 8
    torch.testing.assert_close(vq.cluster_size[4:], vq.cluster_size[4:5].expand(4))
    assert 0.3 * uniform < vq.cluster_size[4] < 3 * uniform
    # And it lives: the next batches choose it.
    z = torch.randn(1, 3, max(num_vectors, 1000))
    assert set(range(4, 8)) <= set(vq(z).indices.unique().tolist())
    assert vq.embedding.weight.abs().max() < 10


@BOTH
def test_living_codes_are_not_touched(cls: type[CodebookQuantizer]) -> None:
    torch.manual_seed(5)
    plain = with_dead_codes(cls, decay=0.9)
    torch.manual_seed(5)
    reviving = with_dead_codes(cls, decay=0.9, revival=DeadCodeRevival(0.1))
    for _ in range(2000):
        z = torch.randn(1, 3, 64)
        plain(z)
        reviving(z)
        torch.testing.assert_close(plain.embedding.weight[:4], reviving.embedding.weight[:4], rtol=0, atol=0)
        if reviving.embedding.weight[4:].min() < 500:
            assert plain.embedding.weight[4:].min() > 500
            return
    raise AssertionError("no code revived")


@pytest.mark.parametrize("per_code", [20, 200, 2000])
@pytest.mark.parametrize("num_embeddings", [4, 16])
def test_the_threshold_is_relative_to_uniform_usage(per_code: int, num_embeddings: int) -> None:
    """A code used at 20 % of uniform lives and one at 5 % dies, whatever the batch and the codebook are."""
    vq = VectorQuantizer(num_embeddings, 2, revival=DeadCodeRevival(0.1), decay=0.9)
    codes = 10.0 * torch.arange(num_embeddings).unsqueeze(1) + torch.zeros(num_embeddings, 2)
    vq.embedding.weight.data.copy_(codes)
    counts = torch.full((num_embeddings,), per_code)
    counts[0], counts[1] = per_code // 20, per_code // 5
    z = (codes.repeat_interleave(counts, dim=0) + 0.01).T.unsqueeze(0)
    for _ in range(150):
        vq(z)
        assert torch.equal(vq.embedding.weight[1:], codes[1:])
        if not torch.equal(vq.embedding.weight[0], codes[0]):
            break
    assert not torch.equal(vq.embedding.weight[0], codes[0])


def test_without_revival_the_dead_stay_where_they_are() -> None:
    vq = with_dead_codes(VectorQuantizer)
    far = vq.embedding.weight.detach()[4:].clone()
    for _ in range(50):
        vq(torch.randn(1, 3, 500))
    assert torch.equal(vq.embedding.weight[4:], far)


@pytest.mark.usefixtures("unchecked")
def test_fewer_vectors_than_dead_codes() -> None:
    """Only as many as there are vectors can be revived, each at another vector."""
    vq = EMAVectorQuantizer(64, 2, revival=DeadCodeRevival(0.5), decay=0.5)
    vq.embedding.weight.data.add_(100)
    vq.embedding_sum.copy_(vq.embedding.weight)
    for _ in range(300):  # the averages remember 85 batches
        vq(torch.randn(1, 2, 3))
    assert vq.embedding.weight.isfinite().all()
    assert (vq.embedding.weight.norm(dim=1) < 10).sum() > 3
    assert_counts_agree(vq)


def test_multi_scale_revives_through_its_codebook() -> None:
    codebook = EMAVectorQuantizer(16, 4, revival=DeadCodeRevival(0.1), decay=0.8)
    nn.init.constant_(codebook.embedding.weight, 50.0)
    codebook.embedding.weight[:2] = torch.randn(2, 4)
    codebook.embedding_sum.copy_(codebook.embedding.weight)
    vq = MultiScaleQuantizer(16, 4, (1, 2, 4), quantizer=codebook)
    for _ in range(60):
        output = vq(torch.randn(8, 4, 4, 4))
    assert torch.cat([i.flatten() for i in output.indices]).unique().numel() > 12


def test_collapse_is_cured() -> None:
    """The field's complaint: a codebook far from the data uses one code; with both strategies it uses nearly all."""
    data = torch.randn(30, 4, 4, 256) + 20

    def usage(**options: object) -> int:
        torch.manual_seed(0)
        vq = VectorQuantizer(64, 4, **options)
        optimizer = torch.optim.AdamW(vq.parameters(), lr=1e-3)
        for z in data:
            optimizer.zero_grad()
            vq(z).loss.backward()
            optimizer.step()
        return vq.eval()(data.movedim(0, 1).reshape(4, 4, -1)).indices.unique().numel()

    assert usage() < 32
    assert usage(init=KMeansInit()) > 60
    assert usage(init=KMeansInit(), revival=DeadCodeRevival()) > 60


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (KMeansInit, {"batches": 0}),
        (KMeansInit, {"iterations": 0}),
        (DeadCodeRevival, {"threshold": 0.0}),
        (DeadCodeRevival, {"threshold": 1.0}),
        (DeadCodeRevival, {"threshold": float("nan")}),
    ],
)
def test_strategies_refuse_nonsense(cls: type, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        cls(**arguments)
