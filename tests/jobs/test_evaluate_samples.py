"""Samples against what they imitate: torch-fidelity on the same folders, kept statistics, honest names, harm."""

import json
import shlex
import shutil
from unittest import mock

import pytest
import torch
from fidelity import eigenvalues_of_low_rank, torch_fidelity
from PIL import Image
from torch import nn

from smalti.blocks import EfficientNetLite0, FIDInception
from smalti.cli import main
from smalti.data import open_images
from smalti.formats import WeightsFile, file_sha256
from smalti.jobs.evaluate_samples import EvaluateSamplesConfig, evaluate_samples
from smalti.metrics import save_convolutional_features

NOWHERE = WeightsFile(names=("no-such-file.pth",), sha256="0" * 64)


def crops(folder, photo, count, side=40):
    folder.mkdir()
    picture = Image.fromarray(open_images("embedded:test").load(photo))
    for i in range(count):
        picture.crop((17 * i, 11 * i, 17 * i + side, 11 * i + side)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Twelve samples, and beside them what `smalti sample` also leaves."""
    folder = crops(tmp_path_factory.mktemp("samples") / "drawn", 0, 12)
    Image.new("RGB", (200, 200), "red").save(folder / "grid.png")
    Image.new("RGB", (200, 200), "red").save(folder / "growth.gif")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return crops(tmp_path_factory.mktemp("photos") / "real", 1, 12)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A feature network given by path."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("network") / "random.safetensors"
    save_convolutional_features(path, [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 5)])
    return str(path)


def test_gfid_kid_and_inception_score_are_torch_fidelitys(samples, photos, tmp_path, monkeypatch):
    """The whole way, from PNG files to the numbers, with weights in the published file's layout."""
    fidelity = torch_fidelity()
    path = random_inception(tmp_path / "inception.pth")
    monkeypatch.setattr(FIDInception, "weights", WeightsFile(names=(path.name,), sha256=file_sha256(path)))
    alone = tmp_path / "alone"
    shutil.copytree(samples, alone, ignore=shutil.ignore_patterns("grid.png", "growth.gif"))
    how = {"feature_extractor_weights_path": str(path), "cuda": False, "batch_size": 4, "save_cpu_ram": True}
    how |= {"fid": True, "kid": True, "kid_subset_size": 12, "isc": True, "verbose": False}
    with mock.patch("numpy.linalg.eigvals", eigenvalues_of_low_rank):
        theirs = fidelity.calculate_metrics(input1=str(alone), input2=str(photos), **how)
    config = EvaluateSamplesConfig(str(samples), str(photos), judges=("fid_inception",), weights=tmp_path, batch_size=5)
    result = evaluate_samples(config)
    assert (result.samples_count, result.images, result.protocol.size) == (12, 12, (40, 40))
    assert result.gfid == pytest.approx(theirs[fidelity.KEY_METRIC_FID], rel=1e-3)
    (judgment,) = result.judgments
    assert set(judgment.numbers()) == {"gFID", "KID", "Inception Score"}
    assert judgment.inception_score.mean == pytest.approx(theirs[fidelity.KEY_METRIC_ISC_MEAN], rel=1e-4)
    assert judgment.inception_score.mean > 1.01
    assert judgment.inception_score.std == pytest.approx(theirs[fidelity.KEY_METRIC_ISC_STD], rel=1e-2)
    assert judgment.kernel_distance.mean == pytest.approx(theirs[fidelity.KEY_METRIC_KID_MEAN], rel=1e-3, abs=1e-6)


def random_inception(path):
    """Weights that tell pictures apart, under the published names."""
    from smalti.blocks.fid_inception import _published

    torch.manual_seed(2)
    tensors = {}
    for name, tensor in FIDInception().state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            tensor.normal_(mean=float(name.endswith("bn.weight")), std=0.1)
        tensors[_published(name)] = tensor
    torch.save(tensors | {"fc.bias": torch.randn(1008)}, path)
    return path


def test_the_order_of_samples_and_the_batch_size_change_no_distance(samples, photos, network, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i in range(12):
        shutil.copy(samples / f"{i:02}.png", renamed / f"{11 - i:02}.png")
    one, other = (
        evaluate_samples(EvaluateSamplesConfig(str(folder), str(photos), judges=(network,), batch_size=size))
        for folder, size in ((samples, 1), (renamed, 7))
    )
    assert one.samples_sha256 != other.samples_sha256
    assert one.images_sha256 == other.images_sha256
    assert other.judgments[0].frechet_distance == pytest.approx(one.judgments[0].frechet_distance, abs=1e-5)
    assert one.judgments[0].frechet_distance > 1e-3
    assert (one.gfid, set(one.judgments[0].numbers())) == (
        None,
        {f"{what} on {one.judgments[0].name}" for what in ("Fréchet distance", "KID")},
    )


def test_a_set_against_itself_is_at_distance_zero(photos, network):
    (judgment,) = evaluate_samples(EvaluateSamplesConfig(str(photos), str(photos), judges=(network,))).judgments
    assert judgment.frechet_distance == pytest.approx(0, abs=1e-6)


def test_kept_statistics_stand_for_the_images(samples, photos, network, tmp_path):
    config = EvaluateSamplesConfig(str(samples), str(photos), judges=(network,), statistics=tmp_path)
    first = evaluate_samples(config).to_dict()
    (file,) = tmp_path.iterdir()
    again = evaluate_samples(config).to_dict()
    alone = evaluate_samples(EvaluateSamplesConfig(str(samples), str(file), judges=(network,))).to_dict()
    assert again == first
    for key in ("judges", "images", "images_sha256", "samples_sha256", "protocol"):
        assert alone[key] == first[key], key
    with pytest.raises(ValueError, match=r"size: got 32, expected .*, the size of"):
        evaluate_samples(EvaluateSamplesConfig(str(samples), str(file), judges=(network,), size=32))
    with pytest.raises(ValueError, match="is of convolutional features"):
        evaluate_samples(EvaluateSamplesConfig(str(samples), str(file), judges=("efficientnet_lite0",)))


def test_statistics_of_reconstructed_originals_are_no_reference(samples, photos, network, tmp_path):
    from smalti.jobs.evaluate import EvaluateConfig, evaluate
    from smalti.tokenizers import SimpleVQVAE

    SimpleVQVAE(20, 8, 16, num_stages=2).save_pretrained(tmp_path / "run")
    folder = tmp_path / "statistics"
    folder.mkdir()
    evaluate(EvaluateConfig(str(tmp_path / "run"), str(photos), judges=(network,), size=40, statistics=folder))
    (file,) = folder.iterdir()
    for data, statistics in ((str(file), None), (str(photos), folder)):
        with pytest.raises(ValueError, match="a reference for rFID and cannot be used for gFID"):
            evaluate_samples(EvaluateSamplesConfig(str(samples), data, judges=(network,), statistics=statistics))


def test_the_command_repeats_the_numbers(samples, photos, network, capsys, tmp_path):
    assert (
        main(["eval-samples", str(samples), str(photos), "--judges", f'["{network}"]', "--size", "32", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    words = shlex.split(told["command"])
    assert main([*words[1:], "--json", "--out", str(tmp_path / "numbers.json")]) == 0
    assert json.loads(capsys.readouterr().out) == told == json.loads((tmp_path / "numbers.json").read_text())
    assert "12 images: below 10000 the Fréchet distance on convolutional features" in told["warnings"][0]


def test_without_fids_weights_nothing_is_called_gfid(samples, photos, monkeypatch, capsys):
    monkeypatch.setattr(FIDInception, "weights", NOWHERE)
    assert main(["eval-samples", str(samples), str(photos)]) == 0
    out = capsys.readouterr().out
    assert "KID on EfficientNet-Lite0" in out
    assert "no gFID and Inception Score: weights no-such-file.pth" in out
    monkeypatch.setattr(EfficientNetLite0, "weights", NOWHERE)
    assert main(["eval-samples", str(samples), str(photos)]) == 2
    assert "expected one with weights on this machine" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(samples, photos, network, tmp_path):
    one = crops(tmp_path / "one", 0, 1)
    for drawn, data, complaint in ((one, photos, "samples: got 1"), (samples, one, "data: got 1")):
        with pytest.raises(ValueError, match=complaint):
            evaluate_samples(EvaluateSamplesConfig(str(drawn), str(data), judges=(network,)))
    with pytest.raises(ValueError, match=r"^judges: got \[\], expected one with weights on this machine$"):
        evaluate_samples(EvaluateSamplesConfig(str(samples), str(photos), judges=()))
    with pytest.raises(ValueError, match="judges: lpips compares"):
        evaluate_samples(EvaluateSamplesConfig(str(samples), str(photos), judges=("lpips",)))
    (one / "00.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no readable image"):
        evaluate_samples(EvaluateSamplesConfig(str(one), str(photos), judges=(network,)))
