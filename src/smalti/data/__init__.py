"""Images in and out: files, folders and embedded photographs as sources, transforms, and batches.

`open_images` gives an `ImageSource`, `training_batches` and `ordered_batches` turn it into `Batch`es in -1...1.
"""

from smalti.data.decode import DEFAULT_MAX_PIXELS, load_image
from smalti.data.embedded import EMBEDDED_SPLITS, EmbeddedPhotographs, MissingPackageError
from smalti.data.files import ImageFiles
from smalti.data.idx import IdxImages
from smalti.data.loader import Batch, ordered_batches, training_batches
from smalti.data.opening import open_images
from smalti.data.save import save_image
from smalti.data.source import CachedSource, ImageSource, UnreadableImageError
from smalti.data.transforms import TransformConfig

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "EMBEDDED_SPLITS",
    "Batch",
    "CachedSource",
    "EmbeddedPhotographs",
    "IdxImages",
    "ImageFiles",
    "ImageSource",
    "MissingPackageError",
    "TransformConfig",
    "UnreadableImageError",
    "load_image",
    "open_images",
    "ordered_batches",
    "save_image",
    "training_batches",
]
