"""Panel 7: bits add up to the prior's own likelihood, and only chosen tokens change."""

import base64
import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_priors import FLAT, PYRAMID, awake, masked, next_scale, next_scale_deep, next_token, sequences

from smalti.playground.config import PlayConfig
from smalti.playground.dream import draw, fit, fitted, look, map_of, painted, redraw, surprisal
from smalti.playground.opened import Opened
from smalti.playground.serve import open_models
from smalti.playground.workspace import Workspace
from smalti.priors import MaskedTransformer, NextScaleTransformer, NextTokenTransformer, Prior, TokenLayout
from smalti.quantizers import VectorQuantizer
from smalti.tokenizers import SimpleVQVAE, TiTok, Tokens

MAKERS: dict[str, Callable[[], Prior]] = {
    "next-scale": next_scale,
    "next-scale, two codes": next_scale_deep,
    "next-token": next_token,
    "masked": masked,
    "without classes": lambda: next_token(num_classes=0),
}


@pytest.fixture(params=MAKERS)
def prior(request: pytest.FixtureRequest) -> Prior:
    torch.manual_seed(0)
    return awake(MAKERS[request.param]())


def tokens_of(prior: Prior) -> Tokens:
    layout, (sequence, _) = prior.layout, sequences(prior, batch=1)
    return Tokens.unflatten(sequence, layout.grids, layout.image_size, layout.vocab_size, torch.uint8)


def test_bits_add_up_to_the_likelihood(prior: Prior) -> None:
    tokens = tokens_of(prior)
    bits = surprisal(prior, tokens)
    if not isinstance(prior, MaskedTransformer):
        loss = prior.loss(tokens.flatten(), torch.tensor([prior.num_classes])).item()
        assert bits.sum().item() == pytest.approx(loss / math.log(2) * prior.layout.num_tokens, rel=1e-5)
    if prior.num_classes:
        assert not torch.allclose(surprisal(prior, tokens, 1), bits)


def test_only_chosen_tokens_are_drawn_anew(prior: Prior) -> None:
    tokens = tokens_of(prior)
    chosen = torch.rand(prior.layout.num_tokens, generator=torch.Generator().manual_seed(2)) < 0.5
    drawn = [redraw(prior, tokens, chosen, seed=seed).flatten()[0] for seed in range(3)]
    for sequence in drawn:
        assert torch.equal(sequence[~chosen], tokens.flatten()[0, ~chosen])
        assert 0 <= sequence.min() <= sequence.max() < prior.layout.vocab_size
    assert len({tuple(sequence.tolist()) for sequence in drawn}) > 1
    again = redraw(prior, tokens, chosen, seed=1)
    assert torch.equal(again.flatten()[0], drawn[1])
    assert (again.image_dtype, again.fingerprint) == (tokens.image_dtype, tokens.fingerprint)


def test_at_a_low_temperature_drawn_tokens_surprise_less(prior: Prior) -> None:
    tokens = tokens_of(prior)
    everything = torch.ones(prior.layout.num_tokens, dtype=torch.bool)
    cold = redraw(prior, tokens, everything, temperature=0.01)
    assert surprisal(prior, cold).sum() < surprisal(prior, tokens).sum()


def test_what_cannot_be_drawn_is_refused(prior: Prior) -> None:
    tokens, nothing = tokens_of(prior), torch.zeros(prior.layout.num_tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="region: got no token"):
        redraw(prior, tokens, nothing)
    with pytest.raises(ValueError, match="labels: got 9, expected 0 to"):
        redraw(prior, tokens, ~nothing, label=9)
    for change, message in (({"vocab_size": 12}, "vocabulary size 12"), ({"image_size": (5, 5)}, "scales")):
        with pytest.raises(ValueError, match=f"tokens: got {message}"):
            surprisal(prior, replace(tokens, **change))  # type: ignore[arg-type]


def test_a_region_holds_the_tokens_that_it_mostly_covers() -> None:
    """The oracle counts painted cells of a grid that all scales divide."""
    for layout in (PYRAMID, FLAT, TokenLayout.of(5, [(1, 1, 2), (3, 2, 2), (6, 4, 2)], (24, 16))):
        region = torch.rand(3, 4, generator=torch.Generator().manual_seed(4)) < 0.5
        fine = region.repeat_interleave(12 // 3, 0).repeat_interleave(12 // 4, 1)
        expected = []
        for grid in layout.grids:
            for cell in fine.reshape(grid[0], 12 // grid[0], grid[1], 12 // grid[1]).permute(0, 2, 1, 3).flatten(0, 1):
                expected += [cell.double().mean().item() >= 0.5] * math.prod(grid[2:])
        assert painted(layout, region).tolist() == expected
    assert not painted(PYRAMID, torch.zeros(3, 2, dtype=torch.bool)).any()
    one = torch.zeros(3, 2, dtype=torch.bool)
    one[2, 1] = True
    assert painted(PYRAMID, one).nonzero().flatten().tolist() == [8]  # not the coarse tokens above it


def test_a_picture_is_cut_to_the_size_of_the_prior() -> None:
    picture = torch.randint(256, (3, 48, 16), dtype=torch.uint8)
    assert torch.equal(fitted(picture, PYRAMID), picture[:, 12:36])


# ---- the panel ------------------------------------------------------------------------------------------------------

TOKENIZERS = {"flat": {}, "pyramid": {"patch_nums": (1, 2, 4)}}
KINDS = {"next-token": "flat", "masked": "flat", "next-scale": "pyramid"}


@pytest.fixture(params=KINDS)
def workspace(request: pytest.FixtureRequest) -> Workspace:
    """A tab with a picture of 16 x 16 pixels and a prior of each kind."""
    torch.manual_seed(0)
    tokenizer = SimpleVQVAE(11, 4, 8, **TOKENIZERS[KINDS[request.param]]).eval()  # type: ignore[arg-type]
    opened = Opened("tiny", tokenizer)
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    grids = tokenizer.encode(image).grids
    layout = TokenLayout(11, grids, (16, 16), tokenizer.fingerprint)
    sizes = {"depth": 1, "width": 16, "num_heads": 2}
    made: dict[str, Callable[[], Prior]] = {
        "next-token": lambda: NextTokenTransformer(layout, 2, sizes, class_names=["cat"]),
        "masked": lambda: MaskedTransformer(layout, 0, sizes),
        "next-scale": lambda: NextScaleTransformer(layout, 2, copy.deepcopy(tokenizer.quantizer), sizes),
    }
    opened.prior = awake(made[request.param]())
    workspace = Workspace({"tiny": opened})
    workspace.start(tokenizer.encode(image), image)
    return workspace


def test_the_map_shows_the_bits_of_each_layer(workspace: Workspace) -> None:
    prior = workspace.opened.prior
    assert prior is not None
    shown = look(workspace, {"label": None})
    assert shown["fits"]
    assert KINDS[shown["kind"]] == ("pyramid" if len(shown["maps"]) == 3 else "flat")
    assert len(shown["classes"]) == prior.num_classes
    assert sum(shown["bits"]) == pytest.approx(shown["total"], abs=0.005 * len(shown["bits"]))
    bits = surprisal(prior, workspace.step.tokens)
    assert sum(map_of(bits, layer).sum().item() for layer in workspace.layers) == pytest.approx(shown["total"])
    finest = map_of(bits, workspace.layers[-1])
    assert finest[2, 3].item() == bits[-16 + 2 * 4 + 3]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["maps"][-1].split(",")[1]))))
    assert pixels.shape == (16, 16, 3)
    pixels = pixels[1::4, 2::4]  # one of each cell
    order = finest.clamp(max=16).flatten().argsort()
    light = (pixels.astype(float) @ [0.2, 0.7, 0.1]).flatten()[order.numpy()]
    assert (np.diff(light) >= -1).all()  # the more bits the brighter


def test_drawing_in_a_region_leaves_the_rest_and_can_be_undone(workspace: Workspace) -> None:
    before = workspace.step.tokens.flatten()[0]
    arguments = {"label": None, "cells": [0, 1, 4, 5], "temperature": 1.0}
    outside = torch.ones(4, 4, dtype=torch.bool)
    outside[:2, :2] = False
    changed = 0
    for seed in range(4):
        answer = draw(workspace, {**arguments, "seed": seed})
        after = torch.tensor(answer["tokens"])
        assert torch.equal(after[-16:][outside.flatten()], before[-16:][outside.flatten()])
        if len(before) == 21:  # the quarter is one token of the scale 2 x 2, and less than half of the picture
            assert answer["drawn"] == 5
            assert torch.equal(after[[0, 2, 3, 4]], before[[0, 2, 3, 4]])
        changed += int((after != before).sum())
    assert changed > 0
    while workspace.current:
        workspace.undo()
    assert torch.equal(workspace.step.tokens.flatten()[0], before)


def test_drawing_what_was_predictable_leaves_the_surprising_tokens(workspace: Workspace) -> None:
    assert workspace.opened.prior is not None
    bits, before = surprisal(workspace.opened.prior, workspace.step.tokens), workspace.step.tokens.flatten()[0]
    threshold = bits.median().item()
    arguments = {"label": None, "cells": None, "threshold": threshold, "temperature": 1.0, "seed": 3}
    answer = draw(workspace, arguments)
    assert answer["drawn"] == int((bits < threshold).sum())
    surprising = bits >= threshold
    assert torch.equal(torch.tensor(answer["tokens"])[surprising], before[surprising])


def test_a_picture_of_another_size_is_fitted_first(workspace: Workspace) -> None:
    image = torch.randint(256, (1, 3, 20, 40), dtype=torch.uint8)
    workspace.start(workspace.opened.tokenizer.encode(image), image)
    shown = look(workspace, {"label": None})
    assert (shown["fits"], shown["size"]) == (False, [16, 16])
    with pytest.raises(ValueError, match="tokens: got scales"):
        draw(workspace, {"label": None, "cells": [0], "temperature": 1.0, "seed": 0})
    assert (fit(workspace, {})["width"], fit(workspace, {})["height"]) == (16, 16)
    assert look(workspace, {"label": None})["fits"]


def test_without_a_prior_the_panel_says_so(workspace: Workspace) -> None:
    workspace.opened.prior = None
    assert look(workspace, {"label": None}) == {"kind": None}
    with pytest.raises(ValueError, match="prior: got none for tiny"):
        draw(workspace, {"label": None, "cells": [0], "temperature": 1.0, "seed": 0})


def test_tokens_without_a_place_are_drawn_by_their_bits_alone() -> None:
    sizes = {"width": 32, "layers": 1, "num_heads": 2, "patch_size": 4}
    tokenizer = TiTok(VectorQuantizer(16, 4), sizes, image_size=32, num_latent_tokens=5).eval()
    opened, image = Opened("titok", tokenizer), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    opened.prior = MaskedTransformer(
        TokenLayout(16, ((1, 5),), (32, 32)), 0, {"depth": 1, "width": 16, "num_heads": 2}
    ).eval()
    workspace = Workspace({"titok": opened})
    workspace.start(tokenizer.encode(image), image)
    shown = look(workspace, {"label": None})
    assert (shown["paintable"], shown["rows"], shown["columns"]) == (False, 2, 3)
    arguments = {"label": None, "temperature": 1.0, "seed": 0}
    with pytest.raises(ValueError, match="belong to no place"):
        draw(workspace, {**arguments, "cells": [0]})
    assert draw(workspace, {**arguments, "cells": None, "threshold": 99.0})["drawn"] == 5


def test_the_prior_comes_with_the_tokenizer_in_its_folder(workspace: Workspace, box: Path, tmp_path: Path) -> None:
    prior, tokenizer = workspace.opened.prior, workspace.opened.tokenizer
    assert prior is not None
    prior.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    models = open_models(PlayConfig(prior=str(tmp_path), device="cpu"))
    assert list(models) == [f"{tmp_path}/tokenizer", "photo-f8", "photo-pyramid"]
    assert [opened.prior is not None for opened in models.values()] == [True, False, False]
    tokens = workspace.step.tokens
    loaded = next(iter(models.values())).prior
    assert loaded is not None
    torch.testing.assert_close(surprisal(loaded, tokens), surprisal(prior, tokens))
    with pytest.raises(ValueError, match="tokenizer: got"):
        open_models(PlayConfig(("photo-f8",), prior=str(tmp_path), device="cpu"))
