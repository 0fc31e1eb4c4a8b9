"""Images → ids of a language model, ids → images: a tokenizer and its vocabulary in one object.

It has the methods of an image processor of the package transformers (call, `save_pretrained`, `from_pretrained`) and
works without that package. Its folder has `preprocessor_config.json` and the saved tokenizer in `image_tokenizer`; a
language model may be saved in the same folder. `tokenizers/vocabulary.py` defines the ids.
图像与语言模型 id 之间的互相转换。方法与 transformers 的图像处理器相同，但不需要安装该软件包。
"""

import json
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from smalti.checks import expect
from smalti.data import TransformConfig
from smalti.data.colour import grey_or_rgb
from smalti.data.decode import load_picture
from smalti.formats.atomic import replace_file
from smalti.formats.hub import fetch
from smalti.models import CONFIG, WEIGHTS, read_config
from smalti.tokenizers import ImageVocabulary, Tokenizer
from smalti.zoo.models import load_saved

ImageInput = Image.Image | np.ndarray | Tensor | str | Path
"""A Pillow image, uint8 pixels (an array (H, W, C) or a tensor (C, H, W)), or the path of an image file."""

SETTINGS, FOLDER = "preprocessor_config.json", "image_tokenizer"
"""The settings file, with its name in transformers, and the subfolder of the tokenizer."""


@final
class SmaltiImageProcessor:
    """Images to ids of a language model's vocabulary, and back.

    >>> processor = SmaltiImageProcessor(tokenizer, vocabulary)  # doctest: +SKIP
    >>> ids = processor(images)["input_ids"]  # doctest: +SKIP
    >>> images = processor.decode(ids[0])  # doctest: +SKIP
    """

    model_input_names = ("input_ids",)

    def __init__(self, tokenizer: Tokenizer, vocabulary: ImageVocabulary):
        """
        Args:
            tokenizer: in eval mode, on any device.
            vocabulary: ids of its codes, and the image sizes; see `ImageVocabulary.of`.
        """
        own = tokenizer.vocab_size
        expect(vocabulary.vocab_size == own, "vocabulary", f"{vocabulary.vocab_size} codes", f"the tokenizer's {own}")
        self.tokenizer, self.vocabulary = tokenizer, vocabulary

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], return_tensors: Literal["pt"] | None = None
    ) -> dict[str, Any]:
        """Encode images. Each is resized and cropped to the size of the vocabulary with the nearest aspect ratio.

        Args:
            images: one image or several.
            return_tensors: "pt": one int64 tensor (B, L), for images of one size; None: a list of ids per image.

        Returns:
            The ids under "input_ids", including begin and end of each image.

        Raises:
            ValueError: not an image, or sequences of different lengths with `return_tensors="pt"`.
        """
        sequences = [self._encode(self._prepared(image)) for image in _several(images)]
        if return_tensors is None:
            return {"input_ids": [sequence.tolist() for sequence in sequences]}
        expect(return_tensors == "pt", "return_tensors", return_tensors, "'pt' or None")
        lengths = sorted({len(sequence) for sequence in sequences})
        expect(len(lengths) == 1, "images", f"sequences of {lengths} ids", "one length for one tensor")
        return {"input_ids": torch.stack(sequences)}

    def decode(self, ids: Sequence[int] | Tensor) -> list[Image.Image]:
        """The images in a sequence of ids; ids of text are ignored.

        Raises:
            ValueError: a damaged image; the message names the id that does not fit.
        """
        sequence = torch.as_tensor(ids, dtype=torch.int64, device="cpu")
        spans = self.vocabulary.spans(sequence.tolist())
        return [self._decode(sequence[span]) for span in spans]

    def batch_decode(self, ids: Sequence[Sequence[int]] | Tensor) -> list[list[Image.Image]]:
        """The images in each sequence of a batch."""
        return [self.decode(sequence) for sequence in ids]

    # ---- saving and loading -------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, and the tokenizer to the subfolder `image_tokenizer`."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder / FOLDER)
        settings = {"image_processor_type": type(self).__name__, "vocabulary": self.vocabulary.config()}
        with replace_file(folder / SETTINGS, force=True) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, model: str | Path, **hub: Any) -> "SmaltiImageProcessor":
        """Load what `save_pretrained` wrote.

        Args:
            model: the folder, or a name on the hub ("user/name").
            hub: for a model on the hub, options of `hf_hub_download`: `revision`, `token`, `cache_dir` …

        Raises:
            FileNotFoundError: a file is missing in the folder.
            ValueError: settings of another class, or a tokenizer that does not fit the vocabulary.
        """
        names = (SETTINGS, f"{FOLDER}/{CONFIG}", f"{FOLDER}/{WEIGHTS}")
        folder = Path(model)
        settings, config, _ = (folder / name if folder.is_dir() else fetch(str(model), name, **hub) for name in names)
        table = read_config(settings)
        kind, vocabulary = table.get("image_processor_type"), table.get("vocabulary")
        if kind != cls.__name__ or not isinstance(vocabulary, Mapping):
            raise ValueError(f"{settings}: got image_processor_type {kind!r}, expected {cls.__name__} and a vocabulary")
        return cls(load_saved(config.parent), ImageVocabulary.from_config(vocabulary))

    # ---- parts --------------------------------------------------------------------------------------------------

    def _prepared(self, image: ImageInput) -> UInt8[Tensor, "1 c h w"]:
        """The pixels of an image, resized and cropped to a size of the vocabulary."""
        picture = _picture(image, self.tokenizer.image_channels)
        ratio = log(picture.height / picture.width)
        size = min(self.vocabulary.sizes, key=lambda each: (abs(log(each[0] / each[1]) - ratio), -each[0] * each[1]))
        return TransformConfig(size=size).apply(picture)[None]

    def _encode(self, pixels: Tensor) -> Int64[Tensor, " l"]:
        tokens = self.tokenizer.encode(pixels.to(self._device))
        return self.vocabulary.encode(tokens)[0].cpu()

    def _decode(self, ids: Tensor) -> Image.Image:
        pixels = self.tokenizer.decode(self.vocabulary.decode(ids[None]).to(self._device))[0].cpu()
        return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).squeeze(2).numpy()))

    @property
    def _device(self) -> torch.device:
        return next(self.tokenizer.parameters()).device


def _several(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """One image, a sequence of images, or a batch (B, ...) as a list."""
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    return [images] if isinstance(images, Image.Image | str | Path) else list(images)


def _picture(image: ImageInput, channels: int) -> Image.Image:
    """The image as a Pillow image, RGB or grey."""
    if isinstance(image, str | Path):
        return load_picture(image, channels)
    if isinstance(image, Image.Image):
        return grey_or_rgb(image, "image", channels)
    layout, axis = ("tensor (C, H, W)", 0) if isinstance(image, Tensor) else ("array (H, W, C)", -1)
    fits = image.ndim == 3 and image.shape[axis] in (1, 3) and str(image.dtype).endswith("uint8")
    expect(fits, "image", f"{image.dtype} {tuple(image.shape)}", f"a uint8 {layout} with C = 1 or 3")
    pixels = image.detach().cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) else image
    flat = np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return grey_or_rgb(Image.fromarray(flat), "image", channels)
