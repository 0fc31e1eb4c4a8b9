"""A float64 brute force over all codes: the oracle of the code search."""

import torch

METRICS = ("euclidean", "cosine", "dot")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def costs_in_float64(z, codebook, metric):
    """(N, K), smaller is nearer."""
    z, codebook = z.double(), codebook.double()
    if metric == "euclidean":
        return torch.stack([(codebook - row).square().sum(1) for row in z]) if len(z) else torch.zeros(0, len(codebook))
    if metric == "cosine":
        codebook = torch.nn.functional.normalize(codebook, dim=1, eps=1e-12)
    return -(z @ codebook.T)


def assert_nearest(indices, z, codebook, metric, tolerance=1e-13):
    """The chosen cost is the smallest one, to float64 rounding; of equal codes the first was taken."""
    costs = costs_in_float64(z, codebook, metric)
    smallest, chosen = costs.min(1).values, costs.gather(1, indices[:, None])[:, 0]
    scale = smallest.abs() if metric == "euclidean" else z.double().norm(dim=1) * codebook.double().norm(dim=1).max()
    assert (chosen <= smallest + tolerance * scale + 1e-300).all()
    first_equal = (codebook[:, None] == codebook[indices]).all(2).double().argmax(0)
    assert torch.equal(indices, first_equal)


def few_vectors(K, D=40):
    """Twelve vectors, K codes, and which of these are finite; three tenths are NaN.

    Six vectors are close to three codes each, of which two are equal and one differs in its last bits. The others are
    the last six codes.
    """
    tenth = K // 10
    codebook = randn(K, D)
    first = codebook[tenth : 2 * tenth]
    codebook[4 * tenth : 5 * tenth] = first * (1 + 2**-23)
    codebook[8 * tenth : 9 * tenth] = first
    codebook[:tenth], codebook[6 * tenth : 8 * tenth] = torch.nan, torch.nan
    last_bit = torch.tensor([[0], [0], [1], [1], [0], [0]])
    close = first[torch.arange(6) % tenth] * (1 + 2**-23 * last_bit)
    return torch.cat([close, codebook[-6:]]), codebook, codebook.isfinite().all(1).nonzero()[:, 0]
