"""The photographs inside the wheels of scikit-image and scikit-learn, which `smalti[demo]` installs.

They allow a demonstration without any download. The split is fixed: no smalti recipe trains on the two test
photographs, so numbers on "embedded:test" are comparable between versions. Only photographs are taken from the wheels;
drawings, text pages, synthetic and phase images, and flat texture samples are left out.
"""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from smalti.checks import one_of
from smalti.data.decode import check_decoding, load_picture
from smalti.data.source import ImageSource, MissingPackageError

EMBEDDED_SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "skimage/data/camera.png",
        "skimage/data/chelsea.png",
        "skimage/data/coffee.png",
        "skimage/data/coins.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/moon.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/motorcycle_right.png",
        "skimage/data/retina.jpg",
        "skimage/data/rocket.jpg",
        "sklearn/datasets/images/china.jpg",
    ),
    "test": (
        "skimage/data/astronaut.png",
        "sklearn/datasets/images/flower.jpg",
    ),
}
"""Split -> files, each given as package/path. `camera`, `coins` and `moon` are grey, the others are in colour."""

DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


class EmbeddedPhotographs(ImageSource):
    """One split of the embedded photographs. Each is decoded once and kept in memory. No labels.

    Args:
        split: "train" (12 photographs) or "test" (2).
        channels: 3 for RGB, 1 for grey.

    Raises:
        MissingPackageError: scikit-image or scikit-learn is not installed, or lacks one of the files.
        ValueError: no such split.
    """

    def __init__(self, split: str = "train", channels: int = 3):
        super().__init__()
        check_decoding(channels)
        one_of(tuple(EMBEDDED_SPLITS), split=split)
        self.channels = channels
        self._keys = EMBEDDED_SPLITS[split]
        self._paths = [_installed_file(key) for key in self._keys]
        self._kept: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def _read(self, index: int, enough: int | None) -> Image.Image:
        if index not in self._kept:
            self._kept[index] = load_picture(self._paths[index], self.channels)
        return self._kept[index]


def _installed_file(key: str) -> Path:
    """Path of a package's file, found without importing the package."""
    package, _, inside = key.partition("/")
    install = "install it with: pip install 'smalti[demo]'"
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"embedded photographs: {DISTRIBUTIONS[package]} is not installed; {install}")
    path = Path(next(iter(spec.submodule_search_locations)), inside)
    if not path.is_file():
        raise MissingPackageError(f"embedded photographs: this {DISTRIBUTIONS[package]} has no {inside}; {install}")
    return path
