"""Every quantizer goes through every command: trained, evaluated, compared, stored, tokenized, modelled, sampled.

Exporting has a test of its own, `tests/tokenizers/test_export.py`, over the same table.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from every_quantizer import CASES, Config, types
from PIL import Image

from smalti.codec import coding_tables
from smalti.data import TokenDataset, TransformConfig, load_image, read_pixels
from smalti.formats.storage import Storage
from smalti.formats.token_set import verify
from smalti.jobs.compare import CompareConfig, compare
from smalti.jobs.decode import DecodeConfig, decode
from smalti.jobs.encode import EncodeConfig, encode
from smalti.jobs.evaluate import EvaluateConfig, evaluate
from smalti.jobs.reconstruct import ReconstructConfig, reconstruct
from smalti.jobs.sample import SampleConfig, sample
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.jobs.train import TrainConfig, train
from smalti.jobs.train_prior import TrainPriorConfig, train_prior
from smalti.ops.pixels import to_float
from smalti.quantizers import QUANTIZERS, MultiScaleQuantizer, quantizer_from_config
from smalti.tokenizers import Tokenizer
from smalti.training import OptimizationConfig
from smalti.zoo import load, load_prior

pytest.importorskip("pyarrow", reason="needs the extra smalti[datasets]")
pytest.importorskip("constriction", reason="needs the extra smalti[codec]")

SIZE = 16
TWO_STEPS = OptimizationConfig(steps=2, batch_size=4, warmup_steps=0)
PRIORS = {False: ("next-token-small", "masked-small"), True: ("next-scale-small",)}
"""Which priors model the tokens of a single scale, and which those of several."""


def test_no_quantizer_is_forgotten() -> None:
    assert set.union(*map(types, CASES.values())) == set(QUANTIZERS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight smooth pictures in two class folders, all but one larger than the tokenizer is trained on."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(8):
        (folder / "ab"[n % 2]).mkdir(exist_ok=True)
        small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((22, 19) if n else (SIZE, SIZE)).save(folder / "ab"[n % 2] / f"{n}.png")
    return folder


def trained(quantizer: Config, photos: Path, out: Path) -> Tokenizer:
    """Two steps of a tiny tokenizer, as `smalti train` takes them."""
    built = quantizer_from_config(quantizer)
    sizes = {"vocab_size": built.num_embeddings, "embedding_dim": built.embedding_dim, "hidden_dim": 8}
    train(
        TrainConfig(
            data=str(photos),
            out=str(out),
            model="simple",
            model_args={**sizes, "quantizer": quantizer},
            input=TransformConfig(size=SIZE),
            optimization=TWO_STEPS,
            loss_weights={"l1": 1.0},
            device="cpu",
        )
    )
    return load(out)


@pytest.mark.parametrize("quantizer", CASES.values(), ids=CASES.keys())
def test_every_command(quantizer: Config, photos: Path, tmp_path: Path) -> None:
    run, tokens, pictures = tmp_path / "run", tmp_path / "tokens", tuple(sorted(map(str, photos.rglob("*.png"))))
    tokenizer = trained(quantizer, photos, run)
    assert tokenizer.quantizer.config() == quantizer_from_config(quantizer).config()

    measured = evaluate(EvaluateConfig(str(run), str(photos), judges=(), device="cpu"))
    compared = compare(CompareConfig(runs=(str(run),), data=str(photos), codecs=(), judges=(), device="cpu"))
    assert compared.rows[0].quality == measured.quality
    reconstruct(ReconstructConfig(str(run), pictures[1], tmp_path / "one.png", device="cpu"))

    coding = "learned" if coding_tables(tokenizer) else "adaptive"
    encode(EncodeConfig(str(run), pictures, tmp_path / "tokens.smlt", coding, device="cpu"))
    decode(DecodeConfig(str(run), tmp_path / "tokens.smlt", tmp_path / "decoded", device="cpu"))
    for name in ("a/0.png", "b/1.png"):
        with torch.no_grad():
            expected = tokenizer(to_float(read_pixels(photos / name, 3))).reconstruction[0].permute(1, 2, 0)
        assert np.abs((expected.numpy() + 1) * 127.5 - load_image(tmp_path / "decoded" / name, 3)).max() <= 0.51
    assert np.array_equal(load_image(tmp_path / "one.png", 3), load_image(tmp_path / "decoded/a/2.png", 3))

    tokenize(TokenizeConfig(str(run), str(photos), str(tokens), device="cpu"))
    assert verify(Storage(tokens)) == []
    dataset, first = TokenDataset(tokens), tokenizer.encode(read_pixels(photos / "a/0.png", 3))
    assert torch.equal(dataset[0][0], first.flatten()[0])
    for kind in PRIORS[isinstance(tokenizer.quantizer, MultiScaleQuantizer)]:
        prior, samples = tmp_path / kind, tmp_path / f"{kind}-samples"
        sizes = {"depth": 1, "width": 16, "num_heads": 2}
        train_prior(TrainPriorConfig(str(tokens), str(prior), kind, sizes, optimization=TWO_STEPS, device="cpu"))
        assert load_prior(prior).layout.grids == first.grids
        box = (0.0, 0.0, 0.5, 1.0)
        sample(SampleConfig(str(prior), samples, count=2, image=pictures[0], box=box, device="cpu"))
        assert load_image(samples / "001.png", 3).shape == (SIZE, SIZE, 3)
        assert (samples / "growth.gif").exists() == (len(tokenizer.progressive(first)) > 1)
