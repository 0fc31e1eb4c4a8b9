"""Networks that judge: torch-fidelity on the same pictures, what must not change their numbers, who may judge."""

import dataclasses
import json
import math
import shlex

import numpy as np
import pytest
import torch
import yaml
from fidelity import eigenvalues_of_low_rank, torch_fidelity
from PIL import Image
from torch import nn

from smalti.blocks import AlexNet, EfficientNetLite0, FIDInception
from smalti.cli import main
from smalti.data import load_image, open_images, read_pixels, save_image
from smalti.evaluation.judges import Judges
from smalti.evaluation.measurement import Pictures
from smalti.formats import WeightsFile, file_sha256
from smalti.jobs.evaluate import EvaluateConfig, evaluate
from smalti.losses import FeatureDistance
from smalti.metrics import (
    ConvolutionalFeatures,
    load_convolutional_features,
    read_statistics,
    save_convolutional_features,
    write_statistics,
)
from smalti.ops.pixels import to_float
from smalti.tokenizers import SimpleVQVAE
from smalti.zoo import load

NOWHERE = WeightsFile(names=("no-such-file.pth",), sha256="0" * 64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(20, 8, 16, num_stages=2)
    folder = tmp_path_factory.mktemp("run")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A feature network given by path."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("network") / "random.safetensors"
    save_convolutional_features(path, [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 5)])
    return str(path)


def crops(folder, count, height=40, width=48):
    photo = Image.fromarray(open_images("embedded:test").load(0))
    for i in range(count):
        photo.crop((17 * i, 11 * i, 17 * i + width, 11 * i + height)).save(folder / f"{i:02}.png")
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return crops(tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture(scope="module")
def odd_photos(tmp_path_factory):
    """Ten pictures as people have them: grey, RGB, RGBA, palette, all of different sizes."""
    folder = tmp_path_factory.mktemp("odd")
    photo = Image.fromarray(open_images("embedded:test").load(1))
    for i in range(10):
        picture = photo.crop((20 * i, 30, 20 * i + 30 + 3 * i, 90 - 4 * i))
        if i % 4 == 1:
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture = picture.convert({0: "L", 1: "RGBA", 2: "RGB", 3: "P"}[i % 4])
        picture.save(folder / f"{i}.png")
    return str(folder)


def by_hand(run, photos, network):
    """Features of originals and reconstructions, one picture at a time."""
    tokenizer, extractor = load(run), load_convolutional_features(network)
    pairs = []
    for i in range(8):
        image = read_pixels(f"{photos}/{i:02}.png", channels=3)
        pairs.append([extractor.features(to_float(x)) for x in (image, tokenizer.decode(tokenizer.encode(image)))])
    return [torch.cat(side) for side in zip(*pairs, strict=True)]


def test_distances_are_those_of_torch_fidelity_on_the_same_features(run, photos, network):
    fidelity = torch_fidelity()
    originals, reconstructions = by_hand(run, photos, network)
    statistics = [
        fidelity.metric_fid.fid_features_to_statistics(each.double()) for each in (originals, reconstructions)
    ]
    expected = fidelity.metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    kid = fidelity.metric_kid.kid_features_to_metric(
        originals.double(), reconstructions.double(), kid_subset_size=8, kid_subsets=1, verbose=False
    )
    (judgment,) = evaluate(EvaluateConfig(run, photos, judges=(network,), batch_size=5)).judgments
    assert judgment.frechet_distance == pytest.approx(expected[fidelity.KEY_METRIC_FID], abs=1e-4)
    assert judgment.kernel_distance.mean == pytest.approx(kid[fidelity.KEY_METRIC_KID_MEAN], abs=1e-6)
    assert judgment.weights_sha256 == file_sha256(network)
    assert set(judgment.numbers()) == {f"{what} on {judgment.name}" for what in ("Fréchet distance", "KID")}


@pytest.mark.parametrize("size", ["native", 32])
def test_batch_size_and_workers_change_nothing(run, odd_photos, network, size):
    config = EvaluateConfig(run, odd_photos, judges=(network,), size=size, batch_size=1)
    one = evaluate(config).to_dict()
    for other in (dataclasses.replace(config, batch_size=7), dataclasses.replace(config, batch_size=4, workers=1)):
        again = evaluate(other).to_dict()
        assert again["images_sha256"] == one["images_sha256"]
        assert again["scales"] == one["scales"]
        for key in ("psnr", "ssim", "entropy_bits_per_pixel"):
            assert again[key] == pytest.approx(one[key], abs=1e-4)
        for mine, theirs in zip(one["judges"], again["judges"], strict=True):
            for key in ("frechet_distance", "kid"):
                assert theirs[key] == pytest.approx(mine[key], abs=1e-4)


def test_ten_odd_pictures_give_finite_numbers(run, odd_photos, network):
    for size in ("native", 64):
        result = evaluate(EvaluateConfig(run, odd_photos, judges=(network, "efficientnet_lite0"), size=size))
        assert result.quality["images"] == 10
        numbers = [number for judgment in result.judgments for number in judgment.numbers().values()]
        assert len(numbers) == 4
        assert all(math.isfinite(number) for number in numbers)
        assert min(judgment.frechet_distance for judgment in result.judgments) > 0


def test_grey_tokenizers_are_judged_too(odd_photos, network, tmp_path):
    SimpleVQVAE(20, 8, 16, num_stages=2, image_channels=1).save_pretrained(tmp_path)
    result = evaluate(EvaluateConfig(str(tmp_path), odd_photos, judges=(network,), size=32))
    assert result.protocol.channels == 1
    assert result.judgments[0].frechet_distance > 0


def test_the_command_repeats_the_numbers(run, photos, network, capsys):
    options = ["--judges", f'["{network}"]', "--size", "[24, 32]", "--batch_size", "5", "--min_usage", "0.5"]
    assert main(["eval", run, photos, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    words = shlex.split(told["command"])
    assert words[0] == "smalti"
    assert main([*words[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told


def test_the_json_says_how_the_numbers_were_taken(run, photos, network):
    told = evaluate(EvaluateConfig(run, photos, judges=(network,), size=24)).to_dict()
    protocol = told["protocol"]
    assert (protocol["name"], protocol["version"]) == ("smalti-reconstruction", 1)
    assert (protocol["size"], protocol["crop"], protocol["rounding"]) == ([24, 24], "center", "uint8")
    assert "lanczos" in protocol["resize"]
    assert told["fingerprint"] == load(run).fingerprint
    assert told["images"] == 8
    untrained, warning = told["warnings"]
    assert "one mean colour" in untrained
    assert warning.startswith("8 images: below 10000 the Fréchet distance on convolutional features")


def test_the_hash_is_of_the_prepared_pixels(run, photos, tmp_path):
    for i in range(8):
        save_image(tmp_path / f"renamed-{i:02}.bmp", load_image(f"{photos}/{i:02}.png"))
    hashes = [
        evaluate(EvaluateConfig(run, data, judges=(), size=size)).images_sha256
        for data, size in ((photos, 24), (str(tmp_path), 24), (photos, 20))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_judges_of_pairs_say_the_mean_over_images():
    """A distance per image, whatever the batches; not of the unrounded reconstruction."""
    judge = FeatureDistance(AlexNet())
    image = torch.randint(0, 256, (5, 3, 70, 64), dtype=torch.uint8)
    reconstruction = to_float(image.flip(3)) + 0.001
    pictures = Pictures(Judges(pairs=(judge,)))
    for part in (slice(0, 1), slice(1, 5)):
        pictures.update(reconstruction[part], image[part])
    (judgment,) = pictures.judgments({})
    expected = [judge.distances(to_float(x[None].flip(3)), to_float(x[None])).item() for x in image]
    assert judgment.distance == pytest.approx(np.mean(expected), rel=1e-5)
    assert judgment.numbers() == {"AlexNet feature distance": judgment.distance}


# ---- statistics kept for later -------------------------------------------------------------------------------------


def test_statistics_are_kept_and_used(run, photos, network, tmp_path, monkeypatch):
    config = EvaluateConfig(run, photos, judges=(network,), statistics=tmp_path)
    first = evaluate(config).to_dict()
    (path,) = tmp_path.iterdir()
    assert read_statistics(path, "rFID").images_sha256 == first["images_sha256"]
    passed = []
    original = ConvolutionalFeatures.features

    def counting(self, image):
        passed.append(len(image))
        return original(self, image)

    monkeypatch.setattr(ConvolutionalFeatures, "features", counting)
    assert evaluate(config).to_dict() == first
    assert sum(passed) == 8  # the reconstructions alone


def test_statistics_of_something_else_are_refused(run, photos, odd_photos, network, tmp_path):
    config = EvaluateConfig(run, photos, judges=(network,), size=24, statistics=tmp_path)
    evaluate(config)
    with pytest.raises(ValueError, match="is of other images"):
        evaluate(dataclasses.replace(config, data=odd_photos))
    with pytest.raises(ValueError, match="was taken with"):
        evaluate(dataclasses.replace(config, size=20))
    (path,) = tmp_path.iterdir()
    write_statistics(path, dataclasses.replace(read_statistics(path, "rFID"), kind="gFID"), force=True)
    with pytest.raises(ValueError, match="is a reference for gFID and cannot be used for rFID"):
        evaluate(config)
    with pytest.raises(FileNotFoundError, match="no folder"):
        evaluate(dataclasses.replace(config, statistics=tmp_path / "nowhere"))


def test_a_single_picture_is_no_set(run, photos, network, tmp_path):
    result = evaluate(EvaluateConfig(run, f"{photos}/00.png", judges=(network,)))
    assert result.judgments == ()
    assert list(result.left_out.values()) == ["they need at least 2 images"]


# ---- who may judge -------------------------------------------------------------------------------------------------


def trained_with(folder, run, **loss_weights):
    load(run).save_pretrained(folder)
    (folder / "train.yaml").write_text(yaml.safe_dump({"loss_weights": loss_weights, "input": {"size": 24}}))
    return str(folder)


def test_the_network_of_the_training_never_judges(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(AlexNet, "weights", NOWHERE)
    monkeypatch.setattr(FIDInception, "weights", NOWHERE)
    biased = trained_with(tmp_path, run, l1=1.0, efficientnet_lite0=0.1)
    with pytest.raises(ValueError, match=r"judges: .*EfficientNet-Lite0, on which this tokenizer was trained"):
        evaluate(EvaluateConfig(biased, photos, judges=("efficientnet_lite0",)))
    left_out = evaluate(EvaluateConfig(biased, photos)).left_out
    assert "on which this tokenizer was trained" in left_out["KID on EfficientNet-Lite0"]
    assert "KID on EfficientNet-Lite0" not in evaluate(EvaluateConfig(run, photos)).left_out


def test_what_is_missing_is_said_with_path_and_hash(run, photos, tmp_path, monkeypatch, capsys):
    for kind in (AlexNet, FIDInception, EfficientNetLite0):
        monkeypatch.setattr(kind, "weights", NOWHERE)
    result = evaluate(EvaluateConfig(run, photos, weights=tmp_path))
    assert list(result.left_out) == ["LPIPS", "rFID", "KID on EfficientNet-Lite0"]
    assert (result.judgments, result.rfid) == ((), None)
    for why in result.left_out.values():
        assert str(tmp_path / "no-such-file.pth") in why
        assert "0" * 64 in why
    assert main(["eval", run, photos, "--judges", '["fid_inception"]', "--weights", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "0" * 64 in error
    assert error.count("\n") == 1


def test_unknown_judges_are_refused_by_name(run, photos):
    with pytest.raises(ValueError, match=r"judges: got 'vgg19', expected auto, lpips, .*path"):
        evaluate(EvaluateConfig(run, photos, judges=("vgg19",)))


# ---- the standard network ------------------------------------------------------------------------------------------


def random_inception():
    torch.manual_seed(2)
    network = FIDInception()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            tensor.normal_(mean=float(name.endswith("bn.weight")), std=0.1)
    return network


def test_rfid_and_kid_are_torch_fidelitys_on_the_same_folders(run, tmp_path, monkeypatch):
    """The whole way, from PNG files to the number, with weights in the published file's layout."""
    fidelity = torch_fidelity()
    (tmp_path / "photos").mkdir()
    photos = crops(tmp_path / "photos", 4)
    from smalti.blocks.fid_inception import _published

    tensors = {_published(name): tensor for name, tensor in random_inception().state_dict().items()}
    tensors |= {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}
    path = tmp_path / "inception.pth"
    torch.save(tensors, path)
    monkeypatch.setattr(FIDInception, "weights", WeightsFile(names=(path.name,), sha256=file_sha256(path)))

    reconstructions = tmp_path / "reconstructions"
    reconstructions.mkdir()
    tokenizer = load(run)
    for i in range(4):
        image = read_pixels(f"{photos}/{i:02}.png", channels=3)
        save_image(reconstructions / f"{i:02}.png", tokenizer.decode(tokenizer.encode(image))[0])
    monkeypatch.setattr("numpy.linalg.eigvals", eigenvalues_of_low_rank)
    theirs = fidelity.calculate_metrics(
        input1=photos, input2=str(reconstructions), feature_extractor_weights_path=str(path), cuda=False, fid=True,
        kid=True, kid_subsets=1, kid_subset_size=4, batch_size=2, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    result = evaluate(EvaluateConfig(run, photos, judges=("fid_inception",), weights=tmp_path, batch_size=3))
    assert result.rfid == pytest.approx(theirs[fidelity.KEY_METRIC_FID], abs=0.01)
    assert result.rfid > 1
    kid = result.judgments[0].kernel_distance.mean
    assert kid == pytest.approx(theirs[fidelity.KEY_METRIC_KID_MEAN], rel=1e-3, abs=1e-4)
    assert set(result.judgments[0].numbers()) == {"rFID", "KID"}
    assert np.isfinite(kid)
