"""LPIPS and feature distances against the formula as its authors wrote it, and what both promise."""

import pytest
import torch
import torch.nn.functional as F

from smalti.blocks import VGG16, AlexNet, EfficientNetLite0, FIDInception
from smalti.formats import WeightsFile, file_sha256
from smalti.losses import LPIPS, FeatureDistance, PerceptualDistance, perceptual

WIDTHS = {VGG16: (64, 128, 256, 512, 512), AlexNet: (64, 192, 384, 256, 256)}


def random_lpips(kind=AlexNet) -> LPIPS:
    return LPIPS(kind(), [torch.rand(width) for width in WIDTHS[kind]])


def pictures(batch=2, channels=3, height=40, width=56):
    image = torch.rand(batch, channels, height, width) * 2 - 1
    return (image + 0.2 * torch.randn_like(image)).clamp(-1, 1), image


@pytest.fixture(params=["lpips", "features"])
def distance(request) -> PerceptualDistance:
    return random_lpips() if request.param == "lpips" else FeatureDistance(EfficientNetLite0.load())


@pytest.mark.parametrize("kind", [VGG16, AlexNet])
def test_lpips_equals_its_authors_formula(kind):
    """Norm by square root and eps, a 1x1 convolution as the head, then the mean over positions, then the sum."""
    lpips = random_lpips(kind)
    x, y = pictures()
    expected = torch.zeros(2, 1, 1, 1)
    for head, of_x, of_y in zip(lpips.heads, lpips.network.layers(x), lpips.network.layers(y), strict=True):
        unit_x = of_x / (of_x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10)
        unit_y = of_y / (of_y.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10)
        expected = expected + F.conv2d((unit_x - unit_y) ** 2, head.view(1, -1, 1, 1)).mean([2, 3], keepdim=True)
    torch.testing.assert_close(lpips.distances(x, y), expected.flatten(), rtol=1e-5, atol=1e-6)
    assert lpips(x, y).item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_feature_distance_is_the_cosine_formula():
    """The squared distance of unit vectors is 2 - 2 cos."""
    distance = FeatureDistance(VGG16())
    x, y = pictures()
    layers = zip(distance.network.layers(x), distance.network.layers(y), strict=True)
    expected = torch.stack([(2 - 2 * F.cosine_similarity(a, b, dim=1)).mean(dim=(1, 2)) for a, b in layers]).mean(dim=0)
    torch.testing.assert_close(distance.distances(x, y), expected, rtol=1e-4, atol=1e-5)


def test_equal_pictures_have_distance_zero(distance):
    x, y = pictures()
    assert distance(x, x).item() == 0
    assert distance(x, y).item() > 0
    torch.testing.assert_close(distance.distances(x, y), distance.distances(y, x))


def test_the_mean_over_the_batch_is_that_of_single_pictures(distance):
    x, y = pictures(batch=3)
    alone = torch.stack([distance(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(distance(x, y), alone.mean(), rtol=1e-4, atol=1e-6)


def test_grey_is_expanded_and_tiny_pictures_have_a_distance(distance):
    x, y = pictures(channels=1, height=9, width=8)
    torch.testing.assert_close(distance(x, y), distance(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))
    assert 0 < distance(x, y).item() < 100


def test_autocast_changes_nothing(distance):
    x, y = pictures()
    expected = distance.distances(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance.distances(x, y), expected)
    assert distance.distances(x.bfloat16(), y.bfloat16()).dtype == torch.float32


def test_the_gradient_goes_to_the_reconstruction_alone_and_downhill(distance):
    x, y = (picture.requires_grad_() for picture in pictures())
    before = distance(x, y)
    before.backward()
    assert x.grad.isfinite().all()
    assert y.grad is None
    step = x.detach() - 0.05 * x.grad / x.grad.norm()
    assert distance(step, y).item() < before.item()


def test_positions_where_no_channel_fires_have_a_finite_gradient():
    lpips = random_lpips(VGG16)
    lpips.network.stages[0][2].bias.fill_(-100.0)  # relu1_2 is 0 everywhere
    x, y = pictures()
    lpips(x.requires_grad_(), y).backward()
    assert x.grad.isfinite().all()


def test_real_features_find_more_blur_worse():
    distance = FeatureDistance(EfficientNetLite0.load())
    image = F.interpolate(torch.rand(1, 3, 16, 16), size=(64, 64)) * 2 - 1
    blurred = [F.avg_pool2d(image, k, stride=1, padding=k // 2, count_include_pad=False) for k in (3, 5, 9, 17)]
    values = [distance(x, image).item() for x in blurred]
    assert values == sorted(values)


@pytest.mark.parametrize("kind", [VGG16, AlexNet])
def test_lpips_loads_the_published_heads(kind, monkeypatch, tmp_path):
    """The heads lie in torchmetrics' wheel; a random trunk stands in, under torchvision's names."""
    network = kind()
    convolutions = [key.removesuffix(".weight") for key in network.state_dict() if key.endswith(".weight")]
    own = {AlexNet: (0, 3, 6, 8, 10), VGG16: (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}[kind]
    state = network.state_dict()
    published = {
        f"features.{index}.{part}": state[f"{name}.{part}"]
        for index, name in zip(own, convolutions, strict=True)
        for part in ("weight", "bias")
    }
    torch.save(published, tmp_path / "trunk.pth")
    digest = file_sha256(tmp_path / "trunk.pth")
    monkeypatch.setattr(kind, "weights", WeightsFile(names=("trunk.pth",), sha256=digest))
    lpips = LPIPS.load(kind, tmp_path)
    assert lpips.name == f"LPIPS ({kind.name})"
    assert lpips.weights_sha256 == f"{digest}+{perceptual.HEADS[kind].sha256}"
    assert [head.numel() for head in lpips.heads] == list(WIDTHS[kind])
    assert all((head >= 0).all() and head.max() > 0 for head in lpips.heads)  # as the paper's training ensures
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    x, y = pictures()
    assert lpips(x, x).item() == 0 < lpips(x, y).item()


def test_lpips_exists_on_its_own_networks_only():
    with pytest.raises(ValueError, match="got EfficientNet-Lite0, expected VGG16 or AlexNet"):
        LPIPS.load(EfficientNetLite0)
    with pytest.raises(ValueError, match="got FID Inception, expected VGG16 or AlexNet"):
        LPIPS(FIDInception(), [torch.ones(64)])


def test_names_are_those_of_network_and_weights():
    assert FeatureDistance(VGG16()).name == "VGG16 feature distance"
    assert FeatureDistance(VGG16()).weights_sha256 == ""
    assert FeatureDistance(EfficientNetLite0.load()).weights_sha256 == EfficientNetLite0.weights.sha256


def test_pictures_of_different_shapes_are_refused(unchecked, distance):
    with pytest.raises(ValueError, match=r"\(1, 3, 40, 40\), expected the image's \(1, 3, 40, 56\)"):
        distance(torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 40, 56))
