"""A small configuration of every quantizer, and of what wraps what, to put each promise to all of them."""

from typing import Any

D, K = 4, 12
SIDES = [1, 2, 4]

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
    return table("MultiScaleQuantizer", patch_nums=SIDES, quantizer=inner, **changes)


VECTOR = table("VectorQuantizer")
EMA = table("EMAVectorQuantizer", init={}, revival={})
HALF = table("VectorQuantizer", embedding_dim=D // 2)
FSQ: Config = {"type": "FiniteScalarQuantizer", "levels": [3, 4, 2, 2]}
BITS: Config = {"type": "BinarySphericalQuantizer", "embedding_dim": D, "bitwise": True}
LFQ: Config = {"type": "LookupFreeQuantizer", "embedding_dim": D}

CASES: dict[str, Config] = {
    "vector": VECTOR,
    "vector cosine": table("VectorQuantizer", metric="cosine", init={}, revival={}),
    "z-norm": table("ZNormVectorQuantizer"),
    "ema": EMA,
    "sim vq": table("SimVQ"),
    "index back-propagation": table("IndexBackpropagationQuantizer"),
    "gumbel": table("GumbelQuantizer"),
    "one-hot": {"type": "OneHotQuantizer", "num_embeddings": D},
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": {"type": "BinarySphericalQuantizer", "embedding_dim": D},
    "lfq bits": {**LFQ, "bitwise": True},
    "bsq bits": BITS,
    "projected": projected(HALF),
    "residual": residual(EMA),
    "residual fsq": residual(FSQ),
    "residual bits": residual(BITS, 2),
    "grouped": grouped(HALF),
    "residual of grouped": residual(grouped(HALF)),
    "grouped of residual": grouped(residual(HALF, 2)),
    "projected residual": projected(residual(HALF, 2)),
    "multi-scale": multi_scale(EMA, num_codebooks=3),
    "multi-scale, one codebook": multi_scale(VECTOR),
    "multi-scale of lfq": multi_scale(LFQ) | {"num_embeddings": 2**D},
    "multi-scale of bits": multi_scale(BITS, phi_ratio=0.0, upsampling="bilinear", projected="residuals")
    | {"num_embeddings": 2},
    "multi-scale of residual": multi_scale(residual(VECTOR, 2)),
    "multi-scale of grouped": multi_scale(grouped(HALF)),
}


def types(config: Config) -> set[str]:
    """The names of all quantizers in a configuration."""
    inner = [config["quantizer"]] if "quantizer" in config else config.get("quantizers", [])
    return {config["type"]}.union(*map(types, inner))
