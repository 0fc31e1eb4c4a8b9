"""Images in and out: folders, tar shards, Parquet, hub data sets and embedded photographs as sources; batches.

`open_images` returns an `ImageSource`; `training_batches` and `ordered_batches` turn it into `Batch`es in -1...1.
"""

from smalti.data.decode import DEFAULT_MAX_PIXELS, load_image
from smalti.data.embedded import EMBEDDED_SPLITS, EmbeddedPhotographs
from smalti.data.files import ImageFiles
from smalti.data.hub import HubImages, HubStream
from smalti.data.idx import IdxImages
from smalti.data.loader import Batch, ordered_batches, training_batches
from smalti.data.opening import open_images
from smalti.data.parquet import ParquetImages
from smalti.data.picture_grid import GAP, picture_grid
from smalti.data.save import save_image
from smalti.data.single_images import file_names, image_names, read_pixels
from smalti.data.source import (
    CachedSource,
    ImageSource,
    MissingPackageError,
    SourceVanishedError,
    UnreadableImageError,
)
from smalti.data.tar import TarImages
from smalti.data.token_dataset import TokenBatch, TokenDataset
from smalti.data.transforms import TransformConfig
from smalti.data.views import ViewsConfig, view_batches

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "EMBEDDED_SPLITS",
    "GAP",
    "Batch",
    "CachedSource",
    "EmbeddedPhotographs",
    "HubImages",
    "HubStream",
    "IdxImages",
    "ImageFiles",
    "ImageSource",
    "MissingPackageError",
    "ParquetImages",
    "SourceVanishedError",
    "TarImages",
    "TokenBatch",
    "TokenDataset",
    "TransformConfig",
    "UnreadableImageError",
    "ViewsConfig",
    "file_names",
    "image_names",
    "load_image",
    "open_images",
    "ordered_batches",
    "picture_grid",
    "read_pixels",
    "save_image",
    "training_batches",
    "view_batches",
]
