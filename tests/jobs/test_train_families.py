"""Every VQGAN and TiTok of the zoo trains through `train`: two steps of a small version, saved, loaded, used."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import SMALL

from smalti.data import TransformConfig
from smalti.jobs.train import TrainConfig, train
from smalti.training import OptimizationConfig, read_log
from smalti.zoo import MODELS, build, load


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for n in range(6):
        pixels = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((28, 20)).save(folder / f"{n}.png")
    return folder


def test_no_row_is_forgotten():
    assert set(SMALL) == {name for name, row in MODELS.items() if row["type"] in ("VQGAN", "TiTok")}


@pytest.mark.parametrize("name", SMALL)
def test_two_steps(name, photos, tmp_path):
    out = tmp_path / "run"
    config = TrainConfig(
        data=str(photos), out=str(out), model=name, model_args=SMALL[name],
        input=TransformConfig(size=16), optimization=OptimizationConfig(steps=2, batch_size=4, warmup_steps=0),
        precision="fp32", log_every=1, sample_every=2, checkpoint_every=2,
    )  # fmt: skip
    train(config)
    losses = [line["loss"] for line in read_log(out)]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    torch.manual_seed(config.seed)
    fresh, trained = build(name, **SMALL[name]).state_dict(), load(out)
    moved = [key for key, tensor in trained.state_dict().items() if not torch.equal(tensor, fresh[key])]
    assert any(key.startswith("encoder.") for key in moved)
    assert any(key.startswith("decoder.") for key in moved)
    image = torch.randint(0, 256, (1, 3, 16, 12), dtype=torch.uint8)
    assert trained.decode(trained.encode(image)).shape == image.shape
