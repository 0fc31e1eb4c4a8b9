"""Neighbours, waves, groups and powers of two, each against a definition written out."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from smalti.codec.groups import balanced_groups, num_groups
from smalti.codec.neighbourhood import RADII, WITHIN, layers_of, neighbours, num_neighbours
from smalti.codec.powers import to_weights

GRIDS = [((5, 7),), ((1, 1),), ((6, 1), (1, 9)), ((9,), (3, 3)), ((1, 1), (2, 3), (3, 4), (6, 5)), ((2, 3, 4),), ((),)]


@pytest.mark.parametrize("grids", GRIDS)
def test_waves_and_layers_hold_every_token_once(grids):
    places = [layer.places(y, x) for layer in layers_of(grids) for y, x in layer.waves()]
    count = sum(int(np.prod(grid)) for grid in grids)
    np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(count))


@pytest.mark.parametrize("grids", GRIDS)
def test_a_token_looks_only_at_what_was_coded_before_it(grids):
    layers = layers_of(grids)
    length = sum(int(np.prod(grid)) for grid in grids)
    known = np.zeros(length + 1, bool)
    known[length] = True
    for number, layer in enumerate(layers):
        for y, x in layer.waves():
            around = neighbours(layers, number, y, x, length)
            assert around.shape == (len(y), num_neighbours(len(layers)))
            assert known[around].all()
            known[layer.places(y, x)] = True


def test_neighbours_are_those_of_a_plain_loop():
    grids = ((2, 3), (3, 4), (5, 6))
    starts, length = (0, 6, 18), 48

    def place(k, y, x):
        h, w = grids[k]
        return starts[k] + y * w + x if 0 <= y < h and 0 <= x < w else length

    layers = layers_of(grids)
    for k, (h, w) in enumerate(grids):
        for y in range(h):
            for x in range(w):
                expected = [place(k, y + dy, x + dx) for dy, dx in WITHIN]
                for back, r in enumerate(RADII, 1):
                    for dy in range(-r, r + 1):
                        for dx in range(-r, r + 1):
                            if back > k:
                                expected.append(length)
                                continue
                            middle_y = Fraction(2 * y + 1, 2) * grids[k - back][0] / h
                            middle_x = Fraction(2 * x + 1, 2) * grids[k - back][1] / w
                            expected.append(place(k - back, int(middle_y) + dy, int(middle_x) + dx))
                assert neighbours(layers, k, np.array([y]), np.array([x]), length)[0].tolist() == expected


@pytest.mark.parametrize("count", [4, 5, 22, 64, 1000])
def test_groups_are_balanced_and_hold_every_code_once(count):
    members = balanced_groups(np.random.default_rng(0).normal(size=(count, 5)))
    assert len(members) == num_groups(count)
    np.testing.assert_array_equal(np.sort(members[members >= 0]), np.arange(count))
    sizes = (members >= 0).sum(axis=1)
    assert sizes.max() - sizes.min() <= 1


def test_groups_hold_similar_codes():
    codes = np.random.default_rng(0).normal(size=(256, 2))
    members = balanced_groups(codes)
    within = np.mean([codes[row].var(axis=0).sum() for row in members])
    assert within < 0.25 * codes.var(axis=0).sum()


def test_weights_are_floors_of_powers_of_two():
    logits = np.concatenate([[0], -np.arange(900)])[None]
    weights = to_weights(logits)[0, 1:].tolist()
    assert weights[0] == 2**24
    assert all(2 * b == a for a, b in zip(weights[::32][:23], weights[32::32], strict=False))
    for i, weight in enumerate(weights[:769]):  # weight <= 2 ** (24 - i / 32) < weight + 1, without roots
        assert weight**32 <= 2 ** (24 * 32 - i) < (weight + 1) ** 32
    assert set(weights[768:]) == {1}
    assert all(a >= b for a, b in pairwise(weights))
    np.testing.assert_array_equal(to_weights(logits + 12345), to_weights(logits))
