"""MultiScaleQuantizer against VAR's algorithms 1 and 2, written again in float64 with plain loops.

The re-implementation shares nothing with the package: areas are averaged by slices, the bicubic kernel (a = -0.75,
edges repeated, half-pixel centres, as published) is summed tap by tap, and φ is a sum over nine shifted images.
"""

import math

import numpy as np
import pytest
import torch

from smalti.ops import proportional_grids
from smalti.quantizers import EMAVectorQuantizer, MultiScaleQuantizer
from smalti.quantizers.scales import phi_of_scale

Grids = tuple[tuple[int, int], ...]


# ---- the slow re-implementation -------------------------------------------------------------------------------------


def area(f: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    height, width = f.shape[2:]
    out = np.empty((*f.shape[:2], *grid))
    for i in range(grid[0]):
        for j in range(grid[1]):
            top, bottom = math.floor(i * height / grid[0]), math.ceil((i + 1) * height / grid[0])
            left, right = math.floor(j * width / grid[1]), math.ceil((j + 1) * width / grid[1])
            out[:, :, i, j] = f[:, :, top:bottom, left:right].mean((2, 3))
    return out


def cubic(distance: float, a: float = -0.75) -> float:
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resize_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) weights of bicubic interpolation along one side."""
    matrix = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(tap, 0), source - 1)] += cubic(centre - tap)
    return matrix


def bicubic(h: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if h.shape[2:] == size:
        return h
    return np.einsum("yh,bchw,xw->bcyx", resize_matrix(h.shape[2], size[0]), h, resize_matrix(h.shape[3], size[1]))


def mixed(h: np.ndarray, weight: np.ndarray, bias: np.ndarray, ratio: float) -> np.ndarray:
    padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
    conv = np.zeros_like(h) + bias[None, :, None, None]
    for dy in range(3):
        for dx in range(3):
            window = padded[:, :, dy : dy + h.shape[2], dx : dx + h.shape[3]]
            conv += np.einsum("oc,bchw->bohw", weight[:, :, dy, dx], window)
    return (1 - ratio) * h + ratio * conv


class SlowVAR:
    """Algorithm 1 (encoding) and algorithm 2 (reconstruction) with the weights of a MultiScaleQuantizer."""

    def __init__(self, vq: MultiScaleQuantizer, phi_of_scale: list[int], grids: Grids):
        codebooks = vq.get_codebook().detach().double().numpy()
        self.codebooks = codebooks if codebooks.ndim == 3 else [codebooks] * len(grids)
        self.phis = [(p.conv.weight.detach().double().numpy(), p.conv.bias.detach().double().numpy()) for p in vq.phis]
        self.ratio, self.phi_of_scale, self.grids = vq.phi_ratio, phi_of_scale, grids

    def add(self, k: int, f_hat: np.ndarray, codes: np.ndarray) -> np.ndarray:
        h = bicubic(codes, self.grids[-1])
        return f_hat + (mixed(h, *self.phis[self.phi_of_scale[k]], self.ratio) if self.phis else h)

    def lookup(self, k: int, indices: np.ndarray) -> np.ndarray:
        return self.codebooks[k][indices].transpose(0, 3, 1, 2)

    def encode(self, f: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        f_hat, all_indices, all_f_hat = np.zeros_like(f), [], []
        for k, grid in enumerate(self.grids):
            z = area(f - f_hat, grid).transpose(0, 2, 3, 1)
            distances = ((z[..., None, :] - self.codebooks[k]) ** 2).sum(-1)
            two = np.partition(distances, 1, axis=-1)
            assert (two[..., 1] - two[..., 0]).min() > 1e-6, "an unlucky seed: a tie that fp32 cannot decide"
            all_indices.append(distances.argmin(-1))
            f_hat = self.add(k, f_hat, self.lookup(k, all_indices[-1]))
            all_f_hat.append(f_hat)
        return all_indices, all_f_hat

    def var_input(self, all_indices: list[np.ndarray]) -> np.ndarray:
        f_hat, rows = np.zeros((len(all_indices[0]), self.codebooks[0].shape[1], *self.grids[-1])), []
        for k in range(len(self.grids) - 1):
            f_hat = self.add(k, f_hat, self.lookup(k, all_indices[k]))
            seen = area(f_hat, self.grids[k + 1])
            rows.append(seen.reshape(*seen.shape[:2], -1).transpose(0, 2, 1))
        return np.concatenate(rows, axis=1)


# Which φ each scale takes in VAR's published code.
CASES = {
    "one per scale": ((1, 2, 3, 4), {"num_phi": 4}, (4, 4), None, [0, 1, 2, 3]),
    "shared by all": ((1, 2, 3, 4), {"num_phi": 1}, (4, 4), None, [0, 0, 0, 0]),
    "two, shared by neighbours": ((1, 2, 3, 5, 6), {"num_phi": 2}, (6, 6), None, [0, 0, 0, 1, 1]),
    "VAR's own": (
        (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        {"num_phi": 4},
        (16, 16),
        None,
        [0, 0, 1, 1, 1, 2, 2, 3, 3, 3],
    ),
    "ten of ten": ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), {"num_phi": 10}, (10, 10), None, list(range(10))),
    "three of three": ((1, 2, 4), {"num_phi": 3}, (4, 4), None, [0, 1, 2]),
    "six scales on four": ((1, 2, 3, 4, 5, 6), {}, (6, 6), None, [0, 0, 1, 2, 3, 3]),
    "no convolution": ((1, 2, 4), {"phi_ratio": 0.0}, (4, 4), None, []),
    "only convolution": ((1, 2, 4), {"num_phi": 1, "phi_ratio": 1.0}, (4, 4), None, [0, 0, 0]),
    "a codebook a scale": ((1, 2, 3, 4), {"num_codebooks": 4}, (4, 4), None, [0, 1, 2, 3]),
    "a codebook for two or three scales": (
        (1, 2, 3, 4, 5),
        {"num_phi": 2, "num_codebooks": 2},
        (5, 5),
        None,
        [0, 0, 0, 1, 1],
    ),
    "one scale": ((4,), {"num_phi": 1}, (4, 4), None, [0]),
    "one scale of one token": ((1,), {"num_phi": 1}, (1, 1), None, [0]),
    "one scale and the default φ": ((4,), {}, (4, 4), None, [0]),
    "repeated scales": ((2, 2, 4, 4), {"num_phi": 4}, (4, 4), None, [0, 1, 2, 3]),
    "wide": ((1, 2, 4), {"num_phi": 3}, (3, 8), ((1, 2), (2, 4), (3, 8)), [0, 1, 2]),
    "tall": ((1, 2, 3, 4), {"num_phi": 4}, (9, 4), ((2, 1), (4, 2), (7, 3), (9, 4)), [0, 1, 2, 3]),
    "a strip": ((1, 2, 4), {"num_phi": 3}, (1, 6), ((1, 2), (1, 3), (1, 6)), [0, 1, 2]),
    "larger than trained": ((1, 2, 4), {"num_phi": 3}, (12, 12), ((3, 3), (6, 6), (12, 12)), [0, 1, 2]),
    "more scales than trained": ((1, 2, 4), {}, (4, 4), ((1, 1), (2, 2), (3, 3), (4, 4)), [0, 1, 2, 3]),
    "fewer scales than trained": ((1, 2, 3, 4, 5, 6), {}, (6, 6), ((2, 2), (6, 6)), [0, 3]),
    "grids given": ((1, 2, 4), {"num_phi": 3}, (4, 6), ((1, 5), (3, 1), (4, 6)), [0, 1, 2]),
}


@pytest.mark.parametrize(("patch_nums", "options", "size", "grids", "phis"), CASES.values(), ids=CASES.keys())
def test_equals_the_slow_algorithm(
    patch_nums: tuple[int, ...], options: dict, size: tuple[int, int], grids: Grids | None, phis: list[int]
) -> None:
    vq = MultiScaleQuantizer(48, 5, patch_nums, beta=0.4, **options).eval()
    for codebook in vq.quantizers:
        torch.nn.init.normal_(codebook.embedding.weight, std=0.6)
    for parameter in vq.phis.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    z = torch.randn(2, 5, *size)
    given = grids if grids is not None and proportional_grids(patch_nums, *size) != grids else None
    grids = grids or tuple((side, side) for side in patch_nums)

    slow = SlowVAR(vq, phis, grids)
    expected, expected_f_hat = slow.encode(z.double().numpy())
    quantized, loss, indices = vq(z, grids=given)
    for k, grid in enumerate(grids):
        assert indices[k].shape == (2, *grid)
        np.testing.assert_array_equal(indices[k].numpy(), expected[k], err_msg=f"scale {k}")
    np.testing.assert_allclose(quantized.detach().numpy(), expected_f_hat[-1], atol=1e-4)
    error = np.mean([((f_hat - z.double().numpy()) ** 2).mean() for f_hat in expected_f_hat])
    assert loss.item() == pytest.approx(1.4 * error, rel=1e-4)

    for one, other in zip(vq.encode(z, given), indices, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(vq.decode(indices), quantized)
    for one, other in zip(vq.decode_progressive(indices), expected_f_hat, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, atol=1e-4)
    if len(grids) > 1:
        np.testing.assert_allclose(vq.var_input(indices).detach().numpy(), slow.var_input(expected), atol=1e-4)


def test_the_case_grids_given_really_gives_them() -> None:
    patch_nums, _, size, grids, _ = CASES["grids given"]
    assert proportional_grids(patch_nums, *size) != grids


# ---- what a generator relies on --------------------------------------------------------------------------------------


def multi_scale(patch_nums: tuple[int, ...] = (1, 2, 3, 4), **options: object) -> MultiScaleQuantizer:
    vq = MultiScaleQuantizer(32, 4, patch_nums, **options)
    for codebook in vq.quantizers:
        torch.nn.init.normal_(codebook.embedding.weight)
    return vq


@pytest.mark.parametrize("size", [(4, 4), (5, 9)])
@pytest.mark.parametrize("num_codebooks", [1, 4])
def test_sampling_step_by_step_sees_the_teacher_forcing_input(size: tuple[int, int], num_codebooks: int) -> None:
    vq = multi_scale(num_codebooks=num_codebooks).eval()
    indices = vq.encode(torch.randn(2, 4, *size))
    grids = tuple((i.shape[1], i.shape[2]) for i in indices)
    f_hat, rows = torch.zeros(2, 4, *size), []
    for k, scale in enumerate(indices):  # as a sampler would: one scale of tokens, then the next input
        codes = vq.quantizers[k if num_codebooks > 1 else 0].decode(scale)
        f_hat, following = vq.next_scale_input(k, f_hat, codes, grids)
        rows.append(following.flatten(2).transpose(1, 2))
    assert torch.equal(torch.cat(rows[:-1], dim=1), vq.var_input(indices))
    assert torch.equal(f_hat, vq.decode(indices))
    assert torch.equal(rows[-1], f_hat.flatten(2).transpose(1, 2))


def test_the_input_of_a_scale_knows_nothing_of_it_and_later_ones() -> None:
    vq = multi_scale().eval()
    indices = vq.encode(torch.randn(1, 4, 4, 4))
    reference = vq.var_input(indices)
    ends = [4, 13, 29]  # rows of scales 1, 2, 3: 4 + 9 + 16
    for k in range(4):
        changed = tuple((scale + 1) % 32 if j >= k else scale for j, scale in enumerate(indices))
        other = vq.var_input(changed)
        known = ends[k - 1] if k else 0  # rows of scales 1..k depend on scales 0..k-1 only
        assert torch.equal(other[:, :known], reference[:, :known])
        if k < 3:
            assert not torch.equal(other[:, known:], reference[:, known:])


def test_one_scale_gives_the_codes_in_raster_order() -> None:
    vq = multi_scale((4,), num_phi=1).eval()
    (indices,) = vq.encode(torch.randn(2, 4, 3, 5))
    rows = vq.var_input((indices,))
    assert rows.shape == (2, 15, 4)
    assert torch.equal(rows, vq.decode((indices,)).flatten(2).transpose(1, 2))


# ---- gradients and learning ------------------------------------------------------------------------------------------


def test_commitment_gradient_by_hand() -> None:
    """commitment = mean_k mean((f_hat_k - z)^2), so d/dz = mean_k 2 (z - f_hat_k) / numel."""
    vq, z = multi_scale(beta=1.0), torch.randn(2, 4, 4, 4, requires_grad=True)
    output = vq.eval()(z)
    output.terms["commitment"].backward()
    f_hats = torch.stack(vq.decode_progressive(output.indices)).detach()
    torch.testing.assert_close(z.grad, 2 * (z.detach() - f_hats).mean(0) / z.numel())
    assert vq.quantizers[0].embedding.weight.grad is None
    assert all(parameter.grad is None for parameter in vq.phis.parameters())


def test_the_phi_of_a_scale_is_the_one_of_published_checkpoints() -> None:
    """To the last bit: some scales lie halfway between two ticks, and numpy's rounding decides."""
    for num_phi in range(1, 9):
        margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
        ticks = np.linspace(margin, 1 - margin, num_phi)
        for num_scales in range(1, 25):
            places = np.arange(num_scales) / max(1, num_scales - 1)
            expected = np.abs(ticks - places[:, None]).argmin(1).tolist()
            assert [phi_of_scale(k, num_scales, num_phi) for k in range(num_scales)] == expected


def test_codebook_gradient_of_the_bias_of_a_shared_phi_by_hand() -> None:
    """Every scale up to k adds ratio * bias to f_hat_k, hence d f_hat_k / d bias = ratio (k + 1)."""
    vq, z = multi_scale(num_phi=1).eval(), torch.randn(2, 4, 4, 4, requires_grad=True)
    output = vq(z)
    output.terms["codebook"].backward()
    assert z.grad is None
    f_hats = vq.decode_progressive(output.indices)
    expected = sum(
        (2 / z.numel()) * (f_hat - z).sum((0, 2, 3)) * 0.5 * (k + 1) for k, f_hat in enumerate(f_hats)
    ).detach() / len(f_hats)
    torch.testing.assert_close(vq.phis[0].conv.bias.grad, expected)
    assert vq.quantizers[0].embedding.weight.grad.abs().sum() > 0


def test_codebook_gradient_of_one_code_by_finite_differences() -> None:
    vq, z = multi_scale().eval(), torch.randn(2, 4, 4, 4)
    output = vq(z)
    output.terms["codebook"].backward()
    code = int(output.indices[-1].flatten()[0])

    def term() -> float:
        f_hats = torch.stack(vq.decode_progressive(output.indices)).double()
        return ((f_hats - z.double()) ** 2).mean().item()

    for component in range(4):
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                vq.quantizers[0].embedding.weight[code, component] += step
                values.append(term())
                vq.quantizers[0].embedding.weight[code, component] -= step
        slope = (values[0] - values[1]) / 2e-2
        assert vq.quantizers[0].embedding.weight.grad[code, component].item() == pytest.approx(
            slope, abs=1e-5, rel=1e-3
        )


def test_each_finer_scale_brings_the_sum_nearer() -> None:
    vq = multi_scale((1, 2, 4, 8), phi_ratio=0.0)
    z = torch.nn.functional.interpolate(torch.randn(4, 4, 2, 2), size=(8, 8), mode="bilinear") * 2
    f_hats = vq.eval().decode_progressive(vq(z).indices)
    errors = [(f_hat - z).square().mean().item() for f_hat in f_hats]
    assert errors == sorted(errors, reverse=True)


def test_ema_codebook_learns_from_the_residuals_of_all_scales() -> None:
    """One step against the formula: the vectors are what each scale saw, all scales counted together."""
    codebook = EMAVectorQuantizer(32, 4, decay=0.9)
    vq = multi_scale(quantizer=codebook)
    e64, z = codebook.embedding.weight.double().numpy().copy(), torch.randn(3, 4, 4, 4)
    grids = ((1, 1), (2, 2), (3, 3), (4, 4))
    slow = SlowVAR(vq, [0, 1, 2, 3], grids)
    indices, f_hats = slow.encode(z.double().numpy())
    seen = [z.double().numpy(), *(z.double().numpy() - f_hat for f_hat in f_hats[:-1])]
    vectors = np.concatenate(
        [area(f, g).transpose(0, 2, 3, 1).reshape(-1, 4) for f, g in zip(seen, grids, strict=True)]
    )
    chosen = np.concatenate([i.flatten() for i in indices])
    vq(z)
    start = len(vectors) / 32  # before the first batch: uniform usage
    for k in range(32):
        mine = vectors[chosen == k]
        count = 0.9 * start + 0.1 * len(mine)
        total = 0.9 * start * e64[k] + 0.1 * mine.sum(0)
        assert codebook.cluster_size[k].item() == pytest.approx(count, rel=1e-4)
        np.testing.assert_allclose(codebook.embedding.weight[k].numpy(), total / count, atol=1e-4)


def test_usage_is_kept_per_scale() -> None:
    vq = multi_scale((1, 2, 4), quantizer=EMAVectorQuantizer(32, 4, decay=0.9))
    expected = np.zeros((3, 32))
    for _ in range(4):
        output = vq(torch.randn(5, 4, 4, 4))
        counts = np.stack([np.bincount(i.flatten().numpy(), minlength=32) for i in output.indices])
        expected = 0.9 * expected + 0.1 * counts
    np.testing.assert_allclose(vq.scale_usage.numpy(), expected, atol=1e-4)
    vq.eval()(torch.randn(5, 4, 4, 4))
    np.testing.assert_allclose(vq.scale_usage.numpy(), expected, atol=1e-4)


def test_partly_masked_cells_average_what_is_valid() -> None:
    """A cell sees the mean of its valid positions only; a cell without any is left out of learning."""
    codebook = EMAVectorQuantizer(4, 2, decay=0.0)
    vq = MultiScaleQuantizer(4, 2, (2, 4), phi_ratio=0.0, quantizer=codebook)
    codebook.embedding.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [5.0, 5.0], [0.0, 0.0]]))
    z = torch.full((1, 2, 4, 4), 5.0)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    z[0, :, 0, 0], mask[0, 0, 0] = 1.0, True  # the only valid position: its cell must read 1, not a mean with 5
    output = vq(z, mask=mask)
    assert output.indices[0][0, 0, 0] == 0
    assert vq.scale_usage.sum(1).tolist() == [1.0, 1.0]
    assert codebook.cluster_size.sum().item() == pytest.approx(2.0)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grids",
    [
        ((1, 1), (2, 2)),
        ((1, 1), (2, 2), (3, 3), (4, 4)),
        ((1, 1), (2, 2), (3, 4)),
        ((0, 1), (2, 2), (4, 4)),
        ((-1, 1), (2, 2), (4, 4)),
        ((9, 9), (2, 2), (4, 4)),
        (),
    ],
)
@pytest.mark.parametrize("reader", ["forward", "encode"])
def test_grids_that_do_not_fit_are_refused(grids: Grids, reader: str) -> None:
    vq = multi_scale((1, 2, 4), num_codebooks=3 if reader == "encode" else 1)
    with pytest.raises(ValueError, match="grids"):
        getattr(vq, reader)(torch.randn(1, 4, 4, 4), grids=grids)


@pytest.mark.parametrize("num_codebooks", [2, 4])
def test_other_numbers_of_scales_need_one_codebook(num_codebooks: int) -> None:
    vq = multi_scale((1, 2, 3, 4), num_codebooks=num_codebooks)
    indices = [torch.zeros(1, side, side, dtype=torch.int64) for side in (1, 2, 4)]
    with pytest.raises(ValueError, match="indices: got 3 scales, expected 4 as in training"):
        vq.decode(indices)
    with pytest.raises(ValueError, match="grids: got 2 scales, expected 4"):
        vq.encode(torch.randn(1, 4, 4, 4), ((1, 1), (4, 4)))
    with pytest.raises(ValueError, match="indices: got 0 scales, expected 3 or another number"):
        multi_scale((1, 2, 4)).decode([])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 4), (2, 4, 4, 4, 4), (2, 4, 0, 4), (2, 4, 4, 0)])
def test_latents_must_have_two_sides(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="z: got shape"):
        multi_scale()(torch.randn(shape))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_nums": ()}, "patch_nums"),
        ({"patch_nums": (2, 1)}, "patch_nums: got \\(2, 1\\)"),
        ({"patch_nums": (0, 1)}, "patch_nums: got \\(0, 1\\)"),
        ({"patch_nums": (1.9, 4)}, "patch_nums"),
        ({"num_phi": 0}, "num_phi: got 0"),
        ({"num_phi": 5}, "num_phi: got 5"),
        ({"phi_ratio": 1.5}, "phi_ratio: got 1.5"),
        ({"phi_ratio": float("nan")}, "phi_ratio: got nan"),
        ({"num_codebooks": 0}, "num_codebooks: got 0, expected 1 to 3"),
        ({"num_codebooks": 4}, "num_codebooks: got 4"),
        ({"beta": -1.0}, "beta: got -1"),
        ({"num_embeddings": 0}, "num_embeddings: got 0"),
        ({"quantizer": EMAVectorQuantizer(9, 4)}, "9"),
        ({"quantizer": EMAVectorQuantizer(8, 3)}, "3"),
    ],
)
def test_constructor_names_the_argument_and_its_value(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MultiScaleQuantizer(**{"num_embeddings": 8, "embedding_dim": 4, "patch_nums": (1, 2, 4), **changes})
