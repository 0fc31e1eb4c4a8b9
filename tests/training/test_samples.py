"""The sample picture pixel by pixel."""

import torch

from smalti.data import picture_grid
from smalti.tokenizers import SimpleVQVAE
from smalti.training import reconstruction_grid


def test_pictures_stand_where_they_should_with_white_between():
    rows = [torch.full((2, 3, 4, 5), -1.0), torch.full((2, 3, 4, 5), 0.2)]
    rows[0][1] = 0.0
    grid = picture_grid(rows)
    assert grid.shape == (3, 4 + 2 + 4, 5 + 2 + 5)
    expected = torch.full((3, 10, 12), 255, dtype=torch.uint8)
    expected[:, :4, :5] = 0
    expected[:, :4, 7:] = 128  # 127.5 rounds to even
    expected[:, 6:, :5] = 153
    expected[:, 6:, 7:] = 153
    assert torch.equal(grid, expected)


def test_lower_row_is_the_models_reconstruction():
    torch.manual_seed(0)
    model = SimpleVQVAE(16, 4, 8, image_channels=1).eval()
    image = torch.rand(3, 1, 8, 12) * 2 - 1
    grid = reconstruction_grid(model, image)
    expected = ((model(image).reconstruction.detach() + 1) * 127.5).round().to(torch.uint8)
    for n in range(3):
        assert torch.equal(grid[:, 10:, n * 14 : n * 14 + 12], expected[n])
    assert not model.training
