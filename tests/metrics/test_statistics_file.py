"""Statistics files: there and back, and everything that must not be read as something else."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from smalti.metrics import (
    FeatureStatistics,
    Protocol,
    ReferenceStatistics,
    frechet_distance,
    read_statistics,
    write_statistics,
)


@pytest.fixture
def reference():
    features = torch.randn(30, 5)
    exact = features.double()
    statistics = FeatureStatistics("noise", "ab" * 32, 30, exact.mean(0), exact.T.cov(), features)
    return ReferenceStatistics("rFID", statistics, Protocol.of_size((64, 48), 3).to_dict(), "cd" * 32)


@pytest.mark.parametrize("kept", [True, False])
def test_there_and_back(reference, tmp_path, kept):
    if not kept:
        statistics = dataclasses.replace(reference.statistics, features=None)
        reference = dataclasses.replace(reference, statistics=statistics)
    write_statistics(tmp_path / "s.safetensors", reference)
    again = read_statistics(tmp_path / "s.safetensors", "rFID")
    for field in dataclasses.fields(FeatureStatistics):
        ours, theirs = (getattr(each.statistics, field.name) for each in (reference, again))
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, field.name
    assert (again.kind, again.protocol, again.images_sha256) == ("rFID", reference.protocol, "cd" * 32)
    assert frechet_distance(again.statistics, reference.statistics) == pytest.approx(0, abs=1e-9)
    with pytest.raises(FileExistsError):
        write_statistics(tmp_path / "s.safetensors", reference)


@pytest.mark.parametrize(("kind", "wanted"), [("rFID", "gFID"), ("gFID", "rFID")])
def test_kinds_are_never_mixed(reference, tmp_path, kind, wanted):
    path = tmp_path / "s.safetensors"
    write_statistics(path, dataclasses.replace(reference, kind=kind))
    assert read_statistics(path, kind).kind == kind
    with pytest.raises(ValueError, match=f"is a reference for {kind} and cannot be used for {wanted}"):
        read_statistics(path, wanted)


def test_every_flipped_byte_is_noticed(reference, tmp_path):
    path = tmp_path / "s.safetensors"
    write_statistics(path, reference)
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises((ValueError, KeyError)) as caught:
            read_statistics(path, "rFID")
        assert caught.type is ValueError, f"byte {position}"


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_files_are_refused(reference, tmp_path, length):
    path = tmp_path / "s.safetensors"
    write_statistics(path, reference)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged"):
        read_statistics(path, "rFID")


def test_a_relabelled_kind_is_noticed(reference, tmp_path):
    path = tmp_path / "s.safetensors"
    write_statistics(path, reference)
    path.write_bytes(path.read_bytes().replace(b'"rFID"', b'"gFID"'))
    with pytest.raises(ValueError, match="checksum"):
        read_statistics(path, "gFID")


def test_foreign_files_are_refused(reference, tmp_path):
    npz, plain, newer = (tmp_path / name for name in ("virtual.npz", "plain.safetensors", "newer.safetensors"))
    np.savez(npz, mu=np.zeros(3), sigma=np.eye(3))
    save_file({"mean": torch.zeros(3)}, plain)
    save_file({"mean": torch.zeros(3)}, newer, metadata={"format": "smalti feature statistics", "version": "2"})
    for path, complaint in ((npz, "not a statistics file"), (plain, "metadata lack"), (newer, "version 2")):
        with pytest.raises(ValueError, match=complaint):
            read_statistics(path, "rFID")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_statistics(tmp_path / "nothing", "rFID")
    write_statistics(tmp_path / "s.safetensors", reference)
    assert set(load_file(tmp_path / "s.safetensors")) == {"mean", "covariance", "features"}
