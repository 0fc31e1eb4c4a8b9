"""Every quantizer goes through every command: trained, saved, evaluated, stored, tokenized, sampled, exported.

The table is checked against the registry, so that a new quantizer cannot be forgotten.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.data import TokenDataset, TransformConfig, load_image
from smalti.formats.storage import Storage
from smalti.formats.token_set import verify
from smalti.jobs.compare import CompareConfig, compare
from smalti.jobs.decode import DecodeConfig, decode
from smalti.jobs.encode import EncodeConfig, coding_tables, encode, read_pixels
from smalti.jobs.evaluate import EvaluateConfig, evaluate
from smalti.jobs.reconstruct import ReconstructConfig, reconstruct
from smalti.jobs.sample import SampleConfig, sample
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.jobs.train import TrainConfig, train
from smalti.jobs.train_prior import TrainPriorConfig, train_prior
from smalti.ops.pixels import to_float
from smalti.quantizers import MultiScaleQuantizer, quantizer_from_config
from smalti.quantizers.rebuild import QUANTIZERS
from smalti.tokenizers import Tokenizer
from smalti.training import OptimizationConfig
from smalti.zoo import load, load_prior

pytest.importorskip("pyarrow", reason="needs the extra smalti[datasets]")

SIZE, D, K = 16, 4, 12
SIDES = [1, 2, 4]
TWO_STEPS = OptimizationConfig(steps=2, batch_size=4, warmup_steps=0)

PRIORS = {False: ("next-token-small", "masked-small"), True: ("next-scale-small",)}
"""Which priors model the tokens of a single scale, and which those of several."""

Config = dict[str, Any]


def table(kind: str, **changes: Any) -> Config:
    return {"type": kind, "num_embeddings": K, "embedding_dim": D} | changes


def residual(inner: Config, levels: int = 3) -> Config:
    return {"type": "ResidualQuantizer", "quantizers": [inner] * levels}


def grouped(inner: Config, groups: int = 2) -> Config:
    return {"type": "GroupedQuantizer", "quantizers": [inner] * groups}


def projected(inner: Config) -> Config:
    return {"type": "ProjectedQuantizer", "embedding_dim": D, "quantizer": inner}


def multi_scale(inner: Config, **changes: Any) -> Config:
    row = {"type": "MultiScaleQuantizer", "num_embeddings": K, "embedding_dim": D, "patch_nums": SIDES}
    return row | {"quantizer": inner} | changes


FSQ = {"type": "FiniteScalarQuantizer", "levels": [3, 4, 2, 2]}
EMA = table("EMAVectorQuantizer", init={}, revival={})
VECTOR = table("VectorQuantizer")
HALF = table("VectorQuantizer", embedding_dim=D // 2)

CASES: dict[str, Config] = {
    "vector": VECTOR,
    "vector cosine": table("VectorQuantizer", metric="cosine", init={}, revival={}),
    "z-norm": table("ZNormVectorQuantizer"),
    "ema": EMA,
    "sim vq": table("SimVQ"),
    "index back-propagation": table("IndexBackpropagationQuantizer"),
    "gumbel": table("GumbelQuantizer"),
    "fsq": FSQ,
    "lfq": {"type": "LookupFreeQuantizer", "embedding_dim": D},
    "bsq": {"type": "BinarySphericalQuantizer", "embedding_dim": D},
    "projected": projected(HALF),
    "residual": residual(EMA),
    "residual fsq": residual(FSQ),
    "grouped": grouped(HALF),
    "residual of grouped": residual(grouped(HALF)),
    "grouped of residual": grouped(residual(HALF, 2)),
    "projected residual": projected(residual(HALF, 2)),
    "multi-scale": multi_scale(EMA, num_codebooks=3),
    "multi-scale, one codebook": multi_scale(VECTOR),
    "multi-scale of lfq": multi_scale({"type": "LookupFreeQuantizer", "embedding_dim": D}, num_embeddings=2**D),
    "multi-scale of residual": multi_scale(residual(VECTOR, 2)),
    "multi-scale of grouped": multi_scale(grouped(HALF)),
}


def types(config: Config) -> set[str]:
    inner = [config["quantizer"]] if "quantizer" in config else config.get("quantizers", [])
    return {config["type"]}.union(*(types(part) for part in inner))


def test_no_quantizer_is_forgotten() -> None:
    assert set.union(*map(types, CASES.values())) == set(QUANTIZERS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight smooth pictures in two class folders, one of them of another size."""
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
    sizes = {"vocab_size": built.num_embeddings, "embedding_dim": built.embedding_dim}
    train(
        TrainConfig(
            data=str(photos),
            out=str(out),
            model="simple",
            model_args={**sizes, "hidden_dim": 8, "quantizer": quantizer},
            input=TransformConfig(size=SIZE),
            optimization=TWO_STEPS,
            loss_weights={"l1": 1.0},
            device="cpu",
        )
    )
    return load(out)


@pytest.mark.parametrize("quantizer", CASES.values(), ids=CASES.keys())
def test_every_command(quantizer: Config, photos: Path, tmp_path: Path) -> None:
    run, tokens, pictures = tmp_path / "run", tmp_path / "tokens", sorted(map(str, photos.rglob("*.png")))
    tokenizer = trained(quantizer, photos, run)
    measured = evaluate(EvaluateConfig(str(run), str(photos), judges=(), device="cpu"))
    assert measured.quality["images"] == 8
    compared = compare(CompareConfig(runs=(str(run),), data=str(photos), codecs=(), judges=(), device="cpu"))
    assert compared.rows[0].quality == measured.quality
    reconstruct(ReconstructConfig(str(run), pictures[1], tmp_path / "r.png", device="cpu"))
    for coding in ("packed", "adaptive", "learned") if coding_tables(tokenizer) else ("packed", "adaptive"):
        encode(EncodeConfig(str(run), tuple(pictures), tmp_path / coding, coding=coding, device="cpu"))
        decode(DecodeConfig(str(run), tmp_path / coding, tmp_path / f"{coding}-images", device="cpu"))
    for name in ("a/2.png", "b/1.png"):
        with torch.no_grad():
            expected = tokenizer(to_float(read_pixels(photos / name, 3))).reconstruction[0].permute(1, 2, 0)
        decoded = load_image(tmp_path / "adaptive-images" / name, 3)
        assert np.abs((expected.numpy() + 1) * 127.5 - decoded).max() <= 0.51
    tokenize(TokenizeConfig(str(run), str(photos), str(tokens), device="cpu"))
    assert verify(Storage(tokens)) == []
    dataset, picture = TokenDataset(tokens), read_pixels(pictures[0], 3)
    assert dataset.num_tokens == tokenizer.encode(picture).num_tokens
    for kind in PRIORS[tokenizer.quantizer.__class__ is MultiScaleQuantizer]:
        prior, samples = tmp_path / kind, tmp_path / f"{kind}-samples"
        sizes = {"depth": 1, "width": 16, "num_heads": 2}
        train_prior(TrainPriorConfig(str(tokens), str(prior), kind, sizes, optimization=TWO_STEPS, device="cpu"))
        assert load_prior(prior).layout.num_tokens == dataset.num_tokens
        box = (0.0, 0.0, 0.5, 1.0)
        sample(SampleConfig(str(prior), samples, count=2, image=pictures[0], box=box, device="cpu"))
        assert load_image(samples / "001.png", 3).shape == (SIZE, SIZE, 3)
        assert (samples / "growth.gif").exists() == (len(tokenizer.progressive(tokenizer.encode(picture))) > 1)


def export(tokenizer: Tokenizer, image: Tensor) -> None: ...
