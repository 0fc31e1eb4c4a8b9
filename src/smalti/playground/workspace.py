"""What one browser tab works on: a tokenizer, a picture, its tokens, and the steps to undo and redo.

Plain Python without Gradio. Every tab has its own workspace, so tabs do not mix; the opened tokenizers are shared.

一个浏览器标签页对应一个工作区：分词器、图片、词元，以及可撤销的各步。
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock, RLock
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from smalti.data.decode import decode_picture
from smalti.data.source import to_array
from smalti.playground.layers import Layer
from smalti.playground.opened import LONGEST, Opened, with_sequence
from smalti.playground.pictures import resized
from smalti.playground.words import RefusalError
from smalti.tokenizers import Tokens

MOST_STEPS = 40
"""Steps that can be undone."""
MOST_TABS = 16
"""Workspaces that are kept; the one unused for the longest time is dropped."""


@dataclass(frozen=True, eq=False)
class Picture:
    """The picture that was opened."""

    name: str
    """File name."""
    original_size: tuple[int, int]
    """Width and height of the file in pixels."""
    image: Image.Image
    """RGB, reduced to at most `LONGEST` pixels."""


@dataclass(frozen=True, eq=False)
class Step:
    """Tokens and their picture."""

    tokens: Tokens
    """The tokens of one image."""
    image: UInt8[Tensor, "1 c h w"]
    """What they decode to."""


@dataclass(frozen=True, eq=False)
class Copied:
    """Tokens that were copied from a region of a picture."""

    model: str
    """Name of the tokenizer."""
    corner: tuple[float, float]
    """Upper left corner of the region as fractions of height and width."""
    cells: tuple[tuple[int, float, float, int], ...]
    """(number of the layer, centre of the cell as fractions of height and width, code)."""


class Workspace:
    """The state of one browser tab.

    Args:
        models: the opened tokenizers by name, the first is used until another is chosen.
    """

    def __init__(self, models: Mapping[str, Opened]):
        self.models = models
        self.opened = next(iter(models.values()))
        self.picture: Picture | None = None
        self.pixels: UInt8[Tensor, "1 c h w"] | None = None
        self.copied: Copied | None = None
        self.steps: list[Step] = []
        self.current = 0
        self._cached: tuple[Step | None, dict[Any, Any]] = (None, {})
        self.lock = RLock()

    # ---- pictures and models ------------------------------------------------------------------------------------

    def open_picture(self, name: str, data: bytes) -> None:
        """Open the bytes of a picture file and encode it.

        Raises:
            ValueError: not a picture, or damaged (one line).
        """
        self.open_image(name, decode_picture(data, name))

    def open_image(self, name: str, image: Image.Image) -> None:
        """Encode a decoded picture of mode RGB."""
        self._encode(self.opened, Picture(name, image.size, resized(image, LONGEST)))

    def choose(self, model: str) -> None:
        """Work with another tokenizer; the picture is encoded again."""
        if model not in self.models:
            raise RefusalError("refused_model", got=repr(model), names=", ".join(self.models))
        if self.picture is not None:
            self._encode(self.models[model], self.picture)
        else:
            self.opened, self.steps, self.pixels, self.current = self.models[model], [], None, 0

    def start(self, tokens: Tokens, pixels: UInt8[Tensor, "1 c h w"] | None = None) -> None:
        """Begin with these tokens; `pixels` is the picture that they were encoded from, if it is known."""
        image = self.opened.tokenizer.decode(tokens)
        self.pixels, self.steps, self.current = pixels, [Step(tokens, image)], 0

    def _encode(self, opened: Opened, picture: Picture) -> None:
        """Encode a picture; nothing changes if that fails."""
        tokenizer = opened.tokenizer
        image = resized(picture.image, opened.longest)
        array = to_array(image if tokenizer.image_channels == 3 else image.convert("L"))
        pixels = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].to(opened.device)
        tokens = tokenizer.encode(pixels)
        self.opened, self.picture = opened, picture
        self.start(tokens, pixels)

    # ---- tokens -------------------------------------------------------------------------------------------------

    @property
    def step(self) -> Step:
        """The current tokens and their picture.

        Raises:
            ValueError: no picture is open.
        """
        self._require_picture()
        return self.steps[self.current]

    @property
    def encoded(self) -> Step:
        """The encoder's tokens and their picture."""
        self._require_picture()
        return self.steps[0]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The token maps of the current tokens."""
        return self.opened.layers(self.step.tokens)

    def layer(self, number: int) -> Layer:
        """The token map with this number."""
        layers = self.layers
        if not 0 <= number < len(layers):
            raise RefusalError("refused_layer", got=number, last=len(layers) - 1)
        return layers[number]

    def change(self, edits: Mapping[int, int]) -> None:
        """Write codes at positions of the flat sequence, as one step that can be undone."""
        before = self.step.tokens
        sequence = before.flatten().clone()
        for position, code in edits.items():
            if not 0 <= code < before.vocab_size:
                raise RefusalError("refused_code", got=code, last=before.vocab_size - 1)
            sequence[0, position] = code
        self.replace(with_sequence(before, sequence))

    def replace(self, tokens: Tokens) -> None:
        """Continue with other tokens of the same shape, as one step that can be undone; equal tokens are no step."""
        if torch.equal(tokens.flatten(), self.step.tokens.flatten()):
            return
        step = Step(tokens, self.opened.tokenizer.decode(tokens))
        self.steps = [*self.steps[: self.current + 1], step]
        if len(self.steps) > MOST_STEPS + 1:
            del self.steps[1]
        self.current = len(self.steps) - 1

    def undo(self) -> None:
        """Go back one step, if there is one."""
        self._require_picture()
        self.current = max(0, self.current - 1)

    def redo(self) -> None:
        """Repeat the step that was undone, if there is one."""
        self._require_picture()
        self.current = min(len(self.steps) - 1, self.current + 1)

    def _require_picture(self) -> None:
        if not self.steps:
            raise RefusalError("refused_no_picture")

    def cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of `compute` for the current picture and step; computed once."""
        if self._cached[0] is not self.step:
            self._cached = self.step, {}
        values = self._cached[1]
        if key not in values:
            values[key] = compute()
        return values[key]


class Workspaces:
    """The workspaces of all open tabs, by the identifier that each tab draws at random."""

    def __init__(self, models: Mapping[str, Opened]):
        self.models = models
        self._kept: OrderedDict[str, Workspace] = OrderedDict()
        self._lock = Lock()

    def of(self, tab: str) -> Workspace:
        """The workspace of a tab; a new one for a new tab."""
        with self._lock:
            if tab not in self._kept:
                self._kept[tab] = Workspace(self.models)
            self._kept.move_to_end(tab)
            while len(self._kept) > MOST_TABS:
                self._kept.popitem(last=False)
            return self._kept[tab]
