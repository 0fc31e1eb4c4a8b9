"""Finds the image, label and caption columns of a table: by their types, or by names that the user gives.

Tables are Parquet files or `datasets.Dataset`s. Both have an Arrow schema. In its metadata, the `datasets` library
stores what Arrow has no type for: that a struct is an image, and the class names of an integer column.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smalti.data.encoded import Encoded

if TYPE_CHECKING:
    import pyarrow

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls")
CAPTION_NAMES = ("caption", "text", "txt", "prompt")
"""Usual column names, in order of preference, for columns whose type is ambiguous."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used.

    Attributes:
        image: bytes of a picture file, or a struct with them in the field "bytes" or else the file's name in "path".
        label: numbers, or class names (strings or Booleans, also dictionary-encoded); None if there is no such column.
        caption: strings; None if there is no such column.
        class_names: names of the classes, if the table has them.
        by_name: whether the label column holds names. `class_names` are then the sorted names, see `with_names`.
    """

    image: str
    label: str | None = None
    caption: str | None = None
    class_names: tuple[str, ...] = ()
    by_name: bool = False

    def with_names(self, values: Iterable[Any]) -> "Columns":
        """A copy whose class names are the sorted distinct values of the label column, like sub-folders."""
        return replace(self, class_names=tuple(sorted({_name(value) for value in values} - {""})))

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in (self.image, self.label, self.caption) if name is not None]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.class_names)}

    def _label(self, value: Any) -> int | None:
        if self.by_name:
            return self._numbers.get(_name(value))
        return int(value) if value is not None and value >= 0 and value == int(value) else None

    def encoded(self, row: dict[str, Any]) -> Encoded:
        """One row of the table. A negative number or an empty name means no label."""
        known: dict[str, Any] = {
            "label": None if self.label is None else self._label(row[self.label]),
            "caption": None if self.caption is None else row[self.caption],
        }
        cell = row[self.image]
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None and path:  # the picture is in a separate file
            try:
                data = Path(path).read_bytes()
            except OSError as error:
                return Encoded(problem=f"{path}: cannot be opened ({error.strerror})", **known)
        if data is None:
            return Encoded(problem="no picture in this row", **known)
        return Encoded(data, **known)


def _name(value: Any) -> str:
    """Name of a class: a string unchanged, a Boolean as "false" or "true", null as ""."""
    return "" if value is None else value if isinstance(value, str) else str(value).lower()


def choose_columns(
    schema: "pyarrow.Schema", where: str, image: str | None = None, label: str | None = None, caption: str | None = None
) -> Columns:
    """Find the columns for image, label and caption.

    Args:
        schema: schema of the table.
        where: name of the table in errors.
        image: name of the image column; None: the only column of that type, or the one with a usual name.
        label: name of the label column; None: chosen likewise, or no label.
        caption: name of the caption column; None: the one with a usual name, or no caption.

    Raises:
        ValueError: no such column, wrong type, or several candidates.
    """
    from pyarrow import types

    features = _features(schema)

    def is_image(field: "pyarrow.Field") -> bool:
        kind, feature = field.type, features.get(field.name, {})
        if types.is_struct(kind):
            return any(part.name == "bytes" and _is_binary(part.type) for part in kind)
        return _is_binary(kind) and feature.get("_type", "Image") in ("Image", "Value")

    images = [field.name for field in schema if is_image(field)]
    kinds = {f.name: f.type.value_type if types.is_dictionary(f.type) else f.type for f in schema}
    numbers = [name for name, kind in kinds.items() if types.is_integer(kind) or types.is_floating(kind)]
    texts = [name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    named = [*texts, *(name for name, kind in kinds.items() if types.is_boolean(kind))]
    labels = [field.name for field in schema if field.name in {*numbers, *named}]
    classes = [name for name in numbers if features.get(name, {}).get("_type") == "ClassLabel"]
    image = image or _only(images) or _usual(images, IMAGE_NAMES)
    if image is None:
        found = f"several candidates: {', '.join(images)}" if images else "no column holds picture files"
        raise ValueError(f"{where}: image column: {found}; name one of {', '.join(schema.names)} as image=COLUMN")
    label = label or _only(classes) or _usual(labels, LABEL_NAMES)
    caption = caption or _usual(texts, CAPTION_NAMES)
    for role, name, allowed in (("image", image, images), ("label", label, labels), ("caption", caption, texts)):
        if name is not None and name not in allowed:
            raise ValueError(
                f"{where}: {role}: got {name!r}, expected one of {', '.join(allowed) or '(no such column)'}"
            )
    class_names = features.get(label, {}).get("names") or () if label else ()
    return Columns(image, label, caption, tuple(class_names), label in named)


def _features(schema: "pyarrow.Schema") -> dict[str, dict[str, Any]]:
    """Column -> its feature description by the `datasets` library; empty if the table has none."""
    stored = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(stored).get("info", {}).get("features", {}) if stored else {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _is_binary(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _usual(names: list[str], usual: tuple[str, ...]) -> str | None:
    return next((name for name in usual if name in names), None)
