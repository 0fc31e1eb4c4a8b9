"""Differentiable augmentation: real and fake alike when asked, against loops, gradients, ranges."""

import pytest
import torch

from smalti.losses.augmentation import AUGMENTATIONS, Augmentation, color, cutout, translation

CPU = torch.device("cpu")
ALL = tuple(AUGMENTATIONS)


@pytest.mark.parametrize("names", [("color",), ("translation",), ("cutout",), ALL])
def test_one_draw_does_the_same_to_two_batches_and_another_draw_something_else(names):
    image = torch.rand(8, 3, 16, 12) * 2 - 1
    draw, other = Augmentation(names, 8, CPU), Augmentation(names, 8, CPU)
    assert torch.equal(draw(image), draw(image.clone()))
    assert not torch.equal(draw(image), other(image))
    same = torch.stack([draw(image[:1].expand(8, -1, -1, -1))[k] for k in range(8)])
    assert len(torch.unique(same, dim=0)) > 1, "each image of a batch has its own draw"


def test_a_generator_decides_the_draw():
    image = torch.rand(4, 3, 8, 8)
    draws = [Augmentation(ALL, 4, CPU, torch.Generator().manual_seed(seed))(image) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_without_names_nothing_changes():
    image = torch.rand(2, 1, 8, 8)
    assert Augmentation((), 2, CPU)(image) is image


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_pass_through_twice(channels):
    image = (torch.rand(2, channels, 6, 6, dtype=torch.float64) * 2 - 1).requires_grad_()
    draw = Augmentation(ALL, 2, CPU, torch.Generator().manual_seed(0))
    draw._drawn = [(augment, u.double()) for augment, u in draw._drawn]
    assert torch.autograd.gradcheck(draw, image)
    assert torch.autograd.gradgradcheck(lambda x: draw(x).square(), image)


def test_translation_against_a_loop():
    image = torch.rand(20, 2, 16, 8)
    u = torch.rand(20, 2)
    u[0], u[1] = 0.0, 1 - 1e-6  # the ends of the range
    moved = translation(image, u)
    for b in range(20):
        down, right = int(u[b, 0] * 5) - 2, int(u[b, 1] * 3) - 1
        expected = torch.zeros(2, 16, 8)
        for y in range(16):
            for x in range(8):
                if 0 <= y + down < 16 and 0 <= x + right < 8:
                    expected[:, y, x] = image[b, :, y + down, x + right]
        assert torch.equal(moved[b], expected)
    shifts = {(int(a * 5) - 2, int(b * 3) - 1) for a, b in torch.rand(500, 2).tolist()}
    assert len(shifts) == 15


def test_cutout_makes_a_hole_of_half_the_sides_that_the_border_may_cut_off():
    holes = cutout(torch.ones(300, 1, 16, 12), torch.rand(300, 2)) == 0
    heights, widths = holes.any(3).sum(2).flatten(), holes.any(2).sum(2).flatten()
    assert torch.equal(holes.sum(dim=(1, 2, 3)), heights * widths), "holes are rectangles"
    assert (heights.max(), widths.max()) == (8, 6)
    assert (heights.min(), widths.min()) == (4, 3)
    assert holes.any(dim=0).all(), "and lie anywhere"


def test_color_at_the_ends_of_its_ranges():
    image = torch.rand(1, 3, 4, 4) * 2 - 1
    middle = torch.full((1, 3), 0.5)
    torch.testing.assert_close(color(image, middle), image)
    brighter, grey, flat = middle.clone(), middle.clone(), middle.clone()
    brighter[0, 0], grey[0, 1], flat[0, 2] = 1.0, 0.0, 0.0
    torch.testing.assert_close(color(image, brighter), image + 0.5)
    torch.testing.assert_close(color(image, grey), image.mean(1, keepdim=True).expand_as(image))
    torch.testing.assert_close(color(image, flat), image.mean() + (image - image.mean()) / 2)
