"""The panels as plain functions: what a person does to tokens, without a browser."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import SMALL

from smalti.formats import read_token_file
from smalti.metrics import psnr, ssim
from smalti.playground.actions import ACTIONS, answer
from smalti.playground.opened import TILE, Opened
from smalti.playground.scales import number_of_steps, picture_until, tokens_until
from smalti.playground.words import FAILED, PANELS, words
from smalti.playground.workspace import MOST_STEPS, Workspace, Workspaces
from smalti.quantizers import GroupedQuantizer, MultiScaleQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, Tokenizer, to_tokens
from smalti.zoo import build

CODES = 12
SIDE = 4
"""Embedding dimension."""


def quantizer_of(kind: str) -> Quantizer:
    def plain(dim: int = SIDE) -> VectorQuantizer:
        return VectorQuantizer(CODES, dim)

    return {
        "map": lambda: plain(),
        "pyramid": lambda: MultiScaleQuantizer(CODES, SIDE, (1, 2, 4), quantizer=plain()),
        "own codebooks": lambda: MultiScaleQuantizer(CODES, SIDE, (1, 2, 4), num_codebooks=3, quantizer=plain()),
        "levels": lambda: ResidualQuantizer([plain() for _ in range(3)]),
        "groups": lambda: GroupedQuantizer([plain(2), plain(2)]),
    }[kind]()


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "titok":
        return build("titok-s128", **SMALL["titok-s128"]).eval()
    return SimpleVQVAE(CODES, SIDE, 8, num_stages=2, num_res_blocks=0, quantizer=quantizer_of(kind)).eval()


KINDS = ("map", "pyramid", "own codebooks", "levels", "groups", "titok")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def picture_bytes(height: int = 16, width: int = 16, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def workspace_of(kind: str, **size: int) -> Workspace:
    workspace = Workspace({kind: Opened(kind, tokenizer_of(kind))})
    workspace.open_picture("a.png", picture_bytes(**size))
    return workspace


def do(workspace: Workspace, action: str, **arguments: object) -> dict:
    return ACTIONS[action](workspace, arguments)


def sequence(workspace: Workspace) -> list[int]:
    return workspace.step.tokens.flatten()[0].tolist()


def decoded(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


# ---- layers ----------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_every_token_lies_in_one_cell_of_one_layer(kind: str) -> None:
    workspace = workspace_of(kind)
    positions = [layer.position(cell) for layer in workspace.layers for cell in range(layer.count)]
    assert sorted(positions) == list(range(workspace.step.tokens.num_tokens))


def test_a_cell_is_the_token_at_its_row_and_column() -> None:
    workspace = workspace_of("levels", height=16, width=24)
    (indices,) = workspace.step.tokens.indices
    for layer in workspace.layers:
        for cell in range(layer.count):
            row, column = divmod(cell, layer.columns)
            assert sequence(workspace)[layer.position(cell)] == indices[0, row, column, layer.number]


def test_layers_know_which_codebooks_are_shared() -> None:
    books = {kind: [layer.codebook for layer in workspace_of(kind).layers] for kind in KINDS}
    assert books["pyramid"] == [0, 0, 0]
    assert books["own codebooks"] == books["levels"] == [0, 1, 2]


# ---- look ------------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_the_page_gets_picture_reconstruction_and_numbers(kind: str) -> None:
    workspace = Workspace({kind: Opened(kind, tokenizer_of(kind))})
    data = base64.b64encode(picture_bytes()).decode()
    state = do(workspace, "look.open", name="a.png", data=data)
    original, again = decoded(state["original"]), decoded(state["reconstruction"])
    assert np.array_equal(original, np.asarray(Image.open(io.BytesIO(picture_bytes()))))
    error = np.square(original.astype(float) - again).mean()
    assert state["numbers"]["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    assert do(workspace, "look.ssim")["ssim"] == pytest.approx(float(ssim(workspace.step.image, workspace.pixels)))
    assert state["tokens"] == sequence(workspace)
    assert decoded(state["error"]).shape == (16, 16, 3)


def test_a_large_picture_is_reduced_and_the_page_can_say_so() -> None:
    workspace = Workspace({"map": Opened("map", tokenizer_of("map"))})
    data = base64.b64encode(picture_bytes(height=300, width=1000)).decode()
    state = do(workspace, "look.open", name="a.png", data=data)
    assert (state["originalSize"], state["width"], state["height"]) == ([1000, 300], 512, 154)
    assert state["covered"] == [512, 156]


@pytest.mark.parametrize("data", [b"", b"no picture", picture_bytes()[:60]], ids=["empty", "text", "truncated"])
def test_a_bad_file_is_one_line_and_changes_nothing(data: bytes) -> None:
    workspaces = Workspaces({"map": Opened("map", tokenizer_of("map"))})
    workspaces.of("tab").open_picture("good.png", picture_bytes())
    before = workspaces.of("tab").step
    arguments = {"name": "bad.png", "data": base64.b64encode(data).decode()}
    reply = answer(workspaces, {"tab": "tab", "action": "look.open", "arguments": arguments})
    assert list(reply) == ["problem", "word", "values"]
    assert "bad.png" in reply["problem"]
    assert (reply["word"], reply["values"]) == ("failed_look", {"reason": reply["problem"]})
    assert "\n" not in reply["problem"]
    assert workspaces.of("tab").step is before


def test_two_tabs_do_not_mix() -> None:
    workspaces = Workspaces({"map": Opened("map", tokenizer_of("map"))})
    first, second = workspaces.of("one"), workspaces.of("two")
    first.open_picture("a.png", picture_bytes(seed=1))
    second.open_picture("b.png", picture_bytes(seed=2))
    do(first, "paint.write", layer=0, cells=[0], code=(sequence(first)[0] + 1) % CODES)
    assert second.current == 0
    assert workspaces.of("one").picture.name == "a.png"  # type: ignore[union-attr]


def test_another_tokenizer_encodes_the_same_picture() -> None:
    workspace = Workspace({kind: Opened(kind, tokenizer_of(kind)) for kind in ("map", "pyramid")})
    workspace.open_picture("a.png", picture_bytes())
    state = do(workspace, "look.model", model="pyramid")
    assert [layer["rows"] for layer in state["layers"]] == [1, 2, 4]
    with pytest.raises(ValueError, match="model: got 'x', expected one of map, pyramid"):
        do(workspace, "look.model", model="x")


# ---- scales ----------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_the_last_scale_is_the_reconstruction(kind: str) -> None:
    workspace = workspace_of(kind)
    tokens = workspace.step.tokens
    pictures = workspace.opened.tokenizer.progressive(tokens)
    steps = number_of_steps(workspace)
    assert tokens_until(workspace, steps - 1) == tokens.num_tokens
    for step in range(steps):
        expected = pictures[step] if len(pictures) == steps else pictures[-1]
        assert torch.equal(picture_until(workspace, step), expected)


def test_codecs_stand_beside_at_the_same_size() -> None:
    workspace = workspace_of("map", height=64, width=64)
    shown, coded = do(workspace, "scales.show"), do(workspace, "scales.codec", codec="webp", step=0)
    assert shown["bytes"] == 128  # 256 tokens of 4 bits
    assert workspace.pixels is not None
    image = torch.from_numpy(decoded(coded["picture"]).copy()).permute(2, 0, 1)[None]
    assert coded["psnr"] == pytest.approx(psnr(image, workspace.pixels).item())


# ---- paint -----------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_the_brush_changes_exactly_one_token(kind: str) -> None:
    workspace = workspace_of(kind)
    before = sequence(workspace)
    layer = workspace.layers[-1]
    position = layer.position(layer.count // 2)
    code = (before[position] + 1) % CODES
    reply = do(workspace, "paint.write", layer=layer.number, cells=[layer.count // 2], code=code)
    assert [p for p, (a, b) in enumerate(zip(before, sequence(workspace), strict=True)) if a != b] == [position]
    assert reply["edited"] == [position]
    assert sequence(workspace)[position] == code


def test_the_brush_changes_pixels_near_the_token_and_the_influence_map_shows_them() -> None:
    workspace = workspace_of("map", height=128, width=128)
    before = workspace.step.image
    cell = 16 * 32 + 16  # covers the pixels 64 to 67
    reply = do(workspace, "paint.write", layer=0, cells=[cell], code=(sequence(workspace)[cell] + 1) % CODES)
    changed = (workspace.step.image != before).any(dim=1)[0]
    assert changed[64:68, 64:68].any()
    assert not changed[:32].any()
    assert not changed[96:].any()
    assert np.array_equal(decoded(reply["influence"])[:, :, 3] > 0, changed.numpy())
    assert reply["changedPixels"] == changed.sum()


@EVERY_KIND
def test_erase_restores_the_encoders_tokens(kind: str) -> None:
    workspace = workspace_of(kind)
    encoded, image = sequence(workspace), workspace.step.image
    layer = workspace.layers[0]
    do(workspace, "paint.write", layer=0, cells=list(range(layer.count)), code=3)
    do(workspace, "paint.erase", layer=0, cells=list(range(layer.count)))
    assert sequence(workspace) == encoded
    do(workspace, "paint.write", layer=0, cells=[0], code=(encoded[layer.position(0)] + 1) % CODES)
    do(workspace, "paint.erase")
    assert torch.equal(workspace.step.image, image)


def test_undo_and_redo_are_inverse() -> None:
    workspace = workspace_of("pyramid")
    seen = [sequence(workspace)]
    for code in (1, 2, 3):
        do(workspace, "paint.write", layer=2, cells=[0, 5], code=code)
        seen.append(sequence(workspace))
    back = [do(workspace, "paint.undo")["tokens"] for _ in range(3)]
    assert back == seen[2::-1]
    forth = [do(workspace, "paint.redo")["tokens"] for _ in range(3)]
    assert forth == seen[1:]
    do(workspace, "paint.undo")
    reply = do(workspace, "paint.write", layer=2, cells=[9], code=(seen[2][-7] + 1) % CODES)
    assert reply["redo"] == 0
    assert do(workspace, "paint.redo")["tokens"] == reply["tokens"]


def test_the_encoders_tokens_stay_after_any_number_of_steps() -> None:
    workspace = workspace_of("map")
    encoded = sequence(workspace)
    for n in range(MOST_STEPS + 5):
        workspace.change({0: n % CODES})
    assert len(workspace.steps) == MOST_STEPS + 1
    do(workspace, "paint.erase")
    assert sequence(workspace) == encoded


def test_a_region_goes_to_another_picture() -> None:
    workspace = workspace_of("pyramid")
    first = [scale[0].clone() for scale in workspace.step.tokens.indices]
    assert do(workspace, "paint.copy", region=[0, 0, 0.5, 0.5])["copied"] == 1 + 4  # no centre of the coarsest scale
    workspace.open_picture("b.png", picture_bytes(seed=5))
    second = [scale[0].clone() for scale in workspace.step.tokens.indices]
    do(workspace, "paint.paste", corner=[0.5, 0.0])
    now = [scale[0] for scale in workspace.step.tokens.indices]
    assert torch.equal(now[2][2:, :2], first[2][:2, :2])
    assert torch.equal(now[2][:2], second[2][:2])
    assert now[1][1, 0] == first[1][0, 0]
    assert torch.equal(now[0], second[0])
    do(workspace, "paint.paste", corner=[0.75, 0.75])  # the rest of the region is outside
    assert now[2].shape == (4, 4)


def test_downloads_are_the_tokens_and_the_picture(tmp_path: Path) -> None:
    workspace = workspace_of("pyramid")
    do(workspace, "paint.write", layer=2, cells=[0], code=1)
    tokens, picture = do(workspace, "paint.tokens"), do(workspace, "paint.picture")
    assert (tokens["file"], picture["file"]) == ("a.tokens", "a-decoded.png")
    path = tmp_path / tokens["file"]
    path.write_bytes(base64.b64decode(tokens["url"].partition(",")[2]))
    tokenizer = workspace.opened.tokenizer
    (image,) = read_token_file(path, tokenizer.fingerprint).images
    again = tokenizer.decode(to_tokens(image, tokenizer.vocab_size))
    assert torch.equal(again, workspace.step.image)
    assert np.array_equal(decoded(picture["url"]), again[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("action", "arguments", "message"),
    [
        ("paint.write", {"layer": 9, "cells": [0], "code": 0}, "layer: got 9, expected 0 to 0"),
        ("paint.write", {"layer": 0, "cells": [16], "code": 0}, "cell: got 16, expected 0 to 15"),
        ("paint.write", {"layer": 0, "cells": [0], "code": 12}, "code: got 12, expected 0 to 11"),
        ("paint.paste", {"corner": [0, 0]}, "copied: got no tokens, expected a copied region"),
        ("codes.pictures", {"wanted": [[0, -1]]}, "code: got -1, expected 0 to 11"),
        ("scales.show", {"step": 1}, "step: got 1, expected 0 to 0"),
    ],
)
def test_impossible_wishes_are_one_line(action: str, arguments: dict, message: str) -> None:
    workspaces = Workspaces({"map": Opened("map", tokenizer_of("map"))})
    workspaces.of("tab").open_picture("a.png", picture_bytes())
    reply = answer(workspaces, {"tab": "tab", "action": action, "arguments": arguments})
    assert reply["problem"] == message
    assert words()["en"][reply["word"]].format(**reply["values"]) == message
    chinese = words()["zh"][reply["word"]].format(**reply["values"])
    assert re.search(r"[一-鿿]", chinese)
    assert "expected" not in chinese


def test_without_a_picture_actions_say_what_is_missing() -> None:
    workspaces = Workspaces({"map": Opened("map", tokenizer_of("map"))})
    for action in ("scales.show", "paint.undo", "paint.tokens"):
        reply = answer(workspaces, {"tab": "tab", "action": action})
        assert reply["problem"].startswith("picture: got none"), action


# ---- codes -----------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_the_wall_has_every_code_once(kind: str) -> None:
    workspace = workspace_of(kind)
    total = workspace.opened.tokenizer.vocab_size
    for layer in workspace.layers:
        reply = do(workspace, "codes.wall", layer=layer.number, start=0)
        assert sorted(reply["codes"]) == list(range(total))
        assert decoded(reply["strip"]).shape == (TILE, TILE * total, 3)


def test_the_picture_of_a_code_is_what_the_tokenizer_decodes() -> None:
    workspace = workspace_of("map")
    strip = decoded(do(workspace, "codes.pictures", wanted=[[0, 5], [0, 3]])["strip"])
    tokenizer = workspace.opened.tokenizer
    tokens = tokenizer.encode(torch.zeros(1, 3, TILE, TILE, dtype=torch.uint8))
    tokens.indices[0].fill_(3)
    assert np.array_equal(strip[:, TILE:], tokenizer.decode(tokens)[0].permute(1, 2, 0).numpy())


def test_codes_are_sorted_by_use_in_training_and_dead_ones_are_counted(box: Path) -> None:
    from smalti.zoo import open_tokenizer

    workspace = Workspace({"photo-f8": Opened("photo-f8", open_tokenizer("photo-f8"))})
    workspace.open_picture("a.png", picture_bytes())
    reply = do(workspace, "codes.wall", layer=0, start=0)
    counts = workspace.opened.tokenizer.quantizer.code_counts()
    assert counts is not None
    assert [counts[0][code] for code in reply["codes"]] == sorted(counts[0].tolist(), reverse=True)
    assert reply["dead"] == (counts[0] == 0).sum()
    assert sum(reply["trained"]) == pytest.approx(1)


# ---- words -----------------------------------------------------------------------------------------------------------


def test_every_panel_has_a_text_for_reasons_from_elsewhere() -> None:
    assert {f"failed_{action.partition('.')[0]}" for action in ACTIONS} == set(FAILED)


def test_both_languages_have_every_text_with_the_same_values() -> None:
    keys = [key for panel in PANELS for key in panel]
    assert len(keys) == len(set(keys))
    table = words()
    for key in keys:
        values = [sorted(set(re.findall(r"\{\w+\}", table[language][key]))) for language in ("en", "zh")]
        assert values[0] == values[1], key
