"""EMAVectorQuantizer against the paper's three formulas, computed beside it in float64 with plain loops."""

import numpy as np
import pytest
import torch
from torch import nn

from smalti.quantizers import EMAVectorQuantizer


def quantizer(k: int = 12, d: int = 5, **options: object) -> EMAVectorQuantizer:
    vq = EMAVectorQuantizer(k, d, **options)
    nn.init.normal_(vq.embedding.weight)
    vq.embedding_sum.copy_(vq.embedding.weight * vq.cluster_size.unsqueeze(1))
    return vq


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_follows_the_paper_over_many_steps(decay: float) -> None:
    """N <- g N + (1 - g) n;  m <- g m + (1 - g) sum z;  e <- m / N (van den Oord et al. 2017, appendix A.1)."""
    vq = quantizer(decay=decay)
    e64 = vq.embedding.weight.double().numpy()
    n64 = np.full(12, 80 / 12)  # before the first batch: uniform usage
    m64 = e64 * n64[:, None]
    for step in range(15):
        z = torch.randn(2, 5, 40) + 0.1 * step
        _, loss, indices = vq(z)
        vectors = z.double().numpy().transpose(0, 2, 1).reshape(-1, 5)
        chosen = ((vectors[:, None] - e64[None]) ** 2).sum(-1).argmin(1)
        np.testing.assert_array_equal(indices.flatten().numpy(), chosen)
        assert loss.item() == pytest.approx(0.25 * ((vectors - e64[chosen]) ** 2).mean(), rel=1e-4)
        for k in range(12):
            mine = vectors[chosen == k]
            n64[k] = decay * n64[k] + (1 - decay) * len(mine)
            m64[k] = decay * m64[k] + (1 - decay) * mine.sum(axis=0)
            if n64[k] > 0:
                e64[k] = m64[k] / n64[k]
        np.testing.assert_allclose(vq.cluster_size.numpy(), n64, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(vq.embedding_sum.numpy(), m64, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(vq.embedding.weight.numpy(), e64, rtol=1e-4, atol=1e-5)
        assert torch.equal(vq.get_codebook(), vq.embedding.weight)


def test_few_vectors_per_batch_lengthen_the_memory() -> None:
    """16 codes and 2 vectors per batch: 1 / (1 - decay) batches of 1/8 vector per code must hold 4 vectors per code."""
    vq = quantizer(16, 5, decay=0.9)
    vq(torch.randn(1, 5, 2))
    before = vq.cluster_size.double()
    indices = vq(torch.randn(1, 5, 2)).indices.flatten()
    decay = 1 - 1 / 32  # 32 batches
    counts = torch.bincount(indices, minlength=16)
    torch.testing.assert_close(vq.cluster_size.double(), decay * before + (1 - decay) * counts)
    assert vq.decay_for(16) == vq.decay_for(7) == 0.9  # enough of them: what the caller asked for


def test_starts_with_sum_over_count_equal_to_the_code() -> None:
    vq = EMAVectorQuantizer(12, 5)
    torch.testing.assert_close(vq.embedding_sum / vq.cluster_size.unsqueeze(1), vq.embedding.weight)


@pytest.mark.usefixtures("unchecked")
def test_an_unused_code_keeps_its_place_for_ever() -> None:
    """Its count and sum both decay to nothing; the code must not drift, vanish or become NaN."""
    vq = quantizer(2, 3, decay=0.5)
    vq.embedding.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [100.0, -50.0, 25.0]]))
    vq.embedding_sum.copy_(vq.embedding.weight)
    for _ in range(400):
        vq(torch.randn(1, 3, 8))
    torch.testing.assert_close(vq.embedding.weight[1], torch.tensor([100.0, -50.0, 25.0]))
    near = torch.tensor([90.0, -40.0, 20.0]).reshape(1, 3, 1)
    assert vq(near).indices.item() == 1  # and it can be chosen again
    torch.testing.assert_close(vq.embedding.weight[1], near.flatten())


def test_no_gradient_and_no_optimizer_touches_the_codebook() -> None:
    vq, z = quantizer(), torch.randn(2, 5, 9, requires_grad=True)
    output = vq(z)
    assert set(output.terms) == {"commitment"}
    (output.loss + output.quantized.square().sum()).backward()
    assert [p for p in vq.parameters() if p.requires_grad] == []
    assert vq.embedding.weight.grad is None


def test_gradient_of_the_commitment_term() -> None:
    vq, z = quantizer(beta=0.4), torch.randn(2, 5, 3, 3, requires_grad=True)
    codebook = vq.embedding.weight.clone()
    output = vq(z)
    output.loss.backward()
    codes = codebook[output.indices].movedim(-1, 1)
    torch.testing.assert_close(z.grad, 2 * 0.4 * (z.detach() - codes) / z.numel())


def test_converges_to_the_mean_of_each_cluster() -> None:
    means = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0]])
    vq = EMAVectorQuantizer(3, 2, decay=0.8)
    vq.embedding.weight.copy_(means + torch.tensor([3.0, 2.0]))
    vq.embedding_sum.copy_(vq.embedding.weight)
    for _ in range(60):
        vq((means[torch.randint(0, 3, (300,))] + 0.01 * torch.randn(300, 2)).T.unsqueeze(0))
    torch.testing.assert_close(vq.embedding.weight.data, means, atol=0.02, rtol=0)


def test_cosine_codes_stay_on_the_sphere() -> None:
    vq = EMAVectorQuantizer(8, 4, metric="cosine", decay=0.5)
    for _ in range(5):
        output = vq(torch.randn(2, 4, 50))
        torch.testing.assert_close(output.quantized.norm(dim=1), torch.ones(2, 50))
        mean = vq.embedding_sum / vq.cluster_size.unsqueeze(1)
        torch.testing.assert_close(vq.get_codebook(), nn.functional.normalize(mean, dim=1), atol=1e-5, rtol=1e-4)


def test_eval_mode_learns_nothing() -> None:
    vq = quantizer().eval()
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(torch.randn(2, 5, 30))
    vq.train()
    vq.encode(torch.randn(2, 5, 30))
    vq.decode(torch.zeros(1, 3, dtype=torch.int64))
    for name, value in vq.state_dict().items():
        assert torch.equal(value, before[name]), name
