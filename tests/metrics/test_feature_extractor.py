"""The convolutional feature network against torch's own layers, its file, and what the file must not hold."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smalti.metrics import FeatureExtractor, load_convolutional_features, save_convolutional_features


@pytest.fixture
def layers():
    return [nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 10, 5, stride=2, padding=2)]


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (1, 1)])
def test_features_are_those_of_the_layers(layers, tmp_path, size):
    save_convolutional_features(tmp_path / "net.safetensors", layers)
    network = load_convolutional_features(tmp_path / "net.safetensors")
    image = torch.rand(3, 3, *size) * 2 - 1
    expected = nn.Sequential(layers[0], nn.ReLU(), layers[1])(image).mean(dim=(2, 3))
    torch.testing.assert_close(network.features(image), expected)
    assert isinstance(network, FeatureExtractor)
    assert network.name == "convolutional features net.safetensors"
    assert network.weights_sha256 == hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()


def test_grey_counts_as_three_equal_channels(layers, tmp_path):
    save_convolutional_features(tmp_path / "net.safetensors", layers)
    network = load_convolutional_features(tmp_path / "net.safetensors")
    grey = torch.rand(2, 1, 16, 16)
    assert torch.equal(network.features(grey), network.features(grey.repeat(1, 3, 1, 1)))
    assert not network.features(grey).requires_grad


MARK = {"format": "smalti convolutional features", "version": "1"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "complaint"),
    [
        ({"0.weight": (4, 3, 3, 3), "0.bias": (4,)}, None, "not a file of format"),
        ({"0.weight": (4, 3, 3, 3), "0.bias": (4,)}, MARK | {"version": "9"}, "version 9"),
        ({"0.weight": (4, 3, 3, 3)}, MARK, "holds 0.weight"),
        ({"0.weight": (4, 1, 3, 3), "0.bias": (4,)}, MARK, "after 3 channels"),
        ({"0.weight": (4, 3, 2, 2), "0.bias": (4,)}, MARK, "shape"),
        ({"0.weight": (4, 3, 3, 3), "0.bias": (4,), "1.weight": (5, 3, 3, 3), "1.bias": (5,)}, MARK, "after 4"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, tensors, metadata, complaint):
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "net", metadata=metadata)
    with pytest.raises(ValueError, match=complaint):
        load_convolutional_features(tmp_path / "net")


def test_what_is_no_file_or_no_safetensors_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_convolutional_features(tmp_path / "nowhere")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_convolutional_features(tmp_path / "text")
    with pytest.raises(ValueError, match="number 0 without a bias"):
        save_convolutional_features(tmp_path / "net", [nn.Conv2d(3, 4, 3, bias=False)])
