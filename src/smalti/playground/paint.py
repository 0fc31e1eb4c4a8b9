"""Panel 4, Paint: write codes into the token maps, erase, copy from picture to picture, undo, redo, download."""

import base64
from pathlib import PurePosixPath
from typing import Any

import torch

from smalti.formats import TokenFile
from smalti.playground.layers import Layer
from smalti.playground.look import current
from smalti.playground.pictures import colour_table, data_url, difference, png
from smalti.playground.words import RefusalError
from smalti.playground.workspace import Copied, Workspace
from smalti.tokenizers import to_token_image

TOP_CHANGE = 32.0
"""Change in grey levels that has the brightest colour of the influence map."""


def write(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Write the code `code` into the cells `cells` of the layer `layer`."""
    layer, code = workspace.layer(int(arguments["layer"])), int(arguments["code"])
    workspace.change({layer.position(int(cell)): code for cell in arguments["cells"]})
    return changed(workspace)


def erase(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the cells `cells` of the layer `layer` the encoder's tokens again; without `layer` all tokens."""
    encoded = workspace.encoded.tokens.flatten()[0]
    if arguments.get("layer") is None:
        workspace.replace(workspace.encoded.tokens)
        return changed(workspace)
    layer = workspace.layer(int(arguments["layer"]))
    positions = [layer.position(int(cell)) for cell in arguments["cells"]]
    workspace.change({position: int(encoded[position]) for position in positions})
    return changed(workspace)


def copy(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Copy the tokens of all layers whose cell has its centre in `region`: top, left, bottom, right as fractions."""
    top, left, bottom, right = (float(value) for value in arguments["region"])
    sequence = workspace.step.tokens.flatten()[0].tolist()
    cells = [
        (layer.number, y, x, sequence[layer.position(cell)])
        for layer in workspace.layers
        for cell, (y, x) in enumerate(_centres(layer))
        if top <= y < bottom and left <= x < right
    ]
    if not cells:
        raise RefusalError("refused_region")
    workspace.copied = Copied(workspace.opened.name, (top, left), tuple(cells))
    return {"copied": len(cells), "region": [top, left, bottom, right]}


def paste(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Write the copied tokens with their corner at `corner`: top, left as fractions. What falls outside is left out."""
    copied = workspace.copied
    if copied is None:
        raise RefusalError("refused_paste")
    if copied.model != workspace.opened.name:
        raise RefusalError("refused_paste_model", got=copied.model, expected=workspace.opened.name)
    top, left = (float(value) for value in arguments["corner"])
    down, right = top - copied.corner[0], left - copied.corner[1]
    layers, edits = workspace.layers, {}
    for number, y, x, code in copied.cells:
        layer = layers[number]
        row, column = int((y + down) * layer.rows // 1), int((x + right) * layer.columns // 1)
        cell = row * layer.columns + column
        if 0 <= row < layer.rows and 0 <= column < layer.columns and cell < layer.count:
            edits[layer.position(cell)] = code
    workspace.change(edits)
    return changed(workspace)


def undo(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Go back one step."""
    before = workspace.current
    workspace.undo()
    return changed(workspace, before)


def redo(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Repeat the step that was undone."""
    before = workspace.current
    workspace.redo()
    return changed(workspace, before)


def changed(workspace: Workspace, before: int | None = None) -> dict[str, Any]:
    """The page's state after a step, with the influence map: which pixels differ from those before it.

    Args:
        workspace: the workspace.
        before: number of the step to compare with; None: the one before the current one.
    """
    earlier = workspace.steps[max(0, workspace.current - 1) if before is None else before].image[0]
    difference_HW = difference(workspace.step.image[0], earlier)
    levels = (difference_HW.clamp(0, TOP_CHANGE) * (255 / TOP_CHANGE)).ceil().to(torch.uint8).cpu()
    colours = torch.from_numpy(colour_table()[levels.numpy()]).permute(2, 0, 1)
    opacity = (60 + 195 * (levels / 255)).to(torch.uint8) * (levels > 0)  # faint where the change is small
    return {
        **current(workspace),
        "influence": data_url(torch.cat([colours, opacity[None]])),
        "changedPixels": int((difference_HW > 0).sum()),
        "pixels": difference_HW.numel(),
    }


def token_file(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """The current tokens as a token file that `smalti decode` reads."""
    return _file(f"{_stem(workspace)}.tokens", token_file_bytes(workspace), "application/octet-stream")


def picture_file(workspace: Workspace, arguments: dict[str, Any]) -> dict[str, Any]:
    """The current picture as a PNG file."""
    return _file(f"{_stem(workspace)}-decoded.png", png(workspace.step.image[0]), "image/png")


def token_file_bytes(workspace: Workspace) -> bytes:
    """The bytes of a token file with the current tokens."""
    tokenizer = workspace.opened.tokenizer
    image = to_token_image(_stem(workspace), workspace.step.tokens, tokenizer.image_channels)
    return TokenFile(tokenizer.fingerprint, tokenizer.vocab_size, (image,)).to_bytes()


def _file(name: str, data: bytes, kind: str) -> dict[str, Any]:
    return {"file": name, "url": f"data:{kind};base64,{base64.b64encode(data).decode()}", "bytes": len(data)}


def _stem(workspace: Workspace) -> str:
    """The name of the picture without suffix and folders, fit for a file name."""
    name = "" if workspace.picture is None else PurePosixPath(workspace.picture.name.replace("\\", "/")).stem
    return "".join(letter if letter.isalnum() or letter in "-_ " else "_" for letter in name).strip() or "picture"


def _centres(layer: Layer) -> list[tuple[float, float]]:
    """Centre of each cell as fractions of height and width."""
    places = (divmod(cell, layer.columns) for cell in range(layer.count))
    return [((row + 0.5) / layer.rows, (column + 0.5) / layer.columns) for row, column in places]
