"""The photographs in other packages' wheels: the right files, the fixed split, nothing imported, a clear refusal."""

import subprocess
import sys
from importlib.metadata import files
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from smalti.data import embedded
from smalti.data.embedded import EMBEDDED_SPLITS, EmbeddedPhotographs, MissingPackageError

HELD_OUT = {"astronaut", "flower"}
NAMED_BY_THE_DEMO = {"chelsea", "coffee", "rocket", "motorcycle_left", "motorcycle_right", "hubble_deep_field", "ihc"}
NAMED_BY_THE_DEMO |= {"retina", "china"}


def names(split):
    return {key.rsplit("/", 1)[1].split(".")[0] for key in EMBEDDED_SPLITS[split]}


def test_the_split_never_changes():
    assert names("test") == HELD_OUT
    assert names("train") >= NAMED_BY_THE_DEMO
    assert not names("train") & HELD_OUT


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_photograph_is_the_file_of_its_distribution(split):
    source = EmbeddedPhotographs(split)
    shipped = {str(f): f for name in ("scikit-image", "scikit-learn") for f in files(name) or []}
    for index in range(len(source)):
        picture = Image.open(str(shipped[source.key(index)].locate()))
        if source.key(index).endswith("rocket.jpg"):  # the only one whose profile is not sRGB
            profile, srgb = BytesIO(picture.info["icc_profile"]), ImageCms.createProfile("sRGB")
            intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
            picture = ImageCms.profileToProfile(picture, profile, srgb, intent, flags=flags)
        expected = np.asarray(picture)
        if expected.ndim == 2:
            expected = np.stack([expected] * 3, axis=2)
        np.testing.assert_array_equal(source.load(index), expected)
        assert source.label(index) is None


def test_decoded_once(monkeypatch):
    source = EmbeddedPhotographs("test", channels=1)
    first = source.load(1)
    assert first.shape == (427, 640, 1)
    monkeypatch.setattr(embedded, "load_picture", None)
    np.testing.assert_array_equal(source.load(1), first)


def test_the_packages_are_not_imported():
    code = (
        "import sys; from smalti.data import open_images; open_images('embedded:test').load(0);"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'skimage', 'sklearn', 'scipy', 'torchvision'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_missing_packages_and_files_name_the_extra(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="split: got 'valid', expected one of train, test"):
        EmbeddedPhotographs("valid")
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"scikit-image is not installed; .*pip install 'smalti\[demo\]'"):
        EmbeddedPhotographs()

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(embedded, "find_spec", lambda name: Spec)
    with pytest.raises(MissingPackageError, match=r"this scikit-image has no data/astronaut\.png; .*smalti\[demo\]"):
        EmbeddedPhotographs("test")
    assert issubclass(MissingPackageError, ValueError)  # which the command line prints as one line
