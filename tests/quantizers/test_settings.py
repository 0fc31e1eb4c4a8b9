"""A quantizer's arguments are named once, in its constructor: signature, attributes and `config()` agree."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from every_quantizer import CASES

from smalti.quantizers import (
    QUANTIZERS,
    BinarySphericalQuantizer,
    DeadCodeRevival,
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    KMeansInit,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    _part,
    quantizer_from_config,
)

TABLE = ["num_embeddings", "embedding_dim", "beta", "metric", "gradient", "init", "revival", "decay", "swap_beta"]


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_has_the_arguments_of_the_signature(name: str) -> None:
    quantizer = quantizer_from_config(CASES[name])
    arguments = set(inspect.signature(type(quantizer)).parameters)
    config = quantizer.config()
    assert {"type", *arguments} - set(config) <= set(quantizer.older_defaults)
    assert set(config) <= {"type", *arguments}
    assert quantizer_from_config(config).config() == config


def test_users_see_the_arguments() -> None:
    for cls in (VectorQuantizer, EMAVectorQuantizer, QUANTIZERS["ZNormVectorQuantizer"]):
        parameters = inspect.signature(cls).parameters
        assert list(parameters) == TABLE
        assert [p for p in TABLE if parameters[p].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD] == TABLE[:3]
    assert inspect.signature(BinarySphericalQuantizer).parameters["beta"].default == 0.0
    assert inspect.signature(QUANTIZERS["LookupFreeQuantizer"]).parameters["beta"].default == 0.25


def test_a_configuration_of_an_older_model_means_what_it_meant() -> None:
    """Written before `symmetric`, `noise_dropout` and `highest_first` existed; and so it is written again."""
    for config in (
        {"type": "FiniteScalarQuantizer", "levels": [4, 4]},
        {
            "type": "ResidualQuantizer",
            "quantizers": [{"type": "FiniteScalarQuantizer", "levels": [4, 4]}],
            "num_quantizers": 3,
            "quantizer_dropout": 0.0,
        },
        {
            "type": "LookupFreeQuantizer",
            "embedding_dim": 4,
            "beta": 0.25,
            "entropy_weight": 0.1,
            "gamma": 1.0,
            "temperature": 0.01,
            "group_size": 9,
        },
    ):
        assert quantizer_from_config(config).config() == config


def test_the_weight_of_the_commitment_is_that_of_the_quantizer_inside_unless_given() -> None:
    inner = {"type": "EMAVectorQuantizer", "num_embeddings": 8, "embedding_dim": 4, "beta": 1.5}
    built = MultiScaleQuantizer(8, 4, (1, 2), quantizer=quantizer_from_config(inner))
    assert built.beta == built.config()["beta"] == 1.5
    assert built(torch.randn(1, 4, 2, 2)).weights["commitment"] == 1.5
    assert MultiScaleQuantizer(8, 4, (1, 2), 0.5, quantizer=quantizer_from_config(inner)).beta == 0.5
    assert MultiScaleQuantizer(8, 4, (1, 2)).beta == 0.25
    assert MultiScaleQuantizer(9, 2, (1, 2), quantizer=FiniteScalarQuantizer([3, 3])).beta == 0.25


WRONG: dict[Any, list[Any]] = {
    int: [1.5, 2.0, True, "4", np.int64(4)],
    float: [math.inf, True, "0.5", np.float32(0.5)],
    bool: [1, "no", None],
    KMeansInit | None: ["kmeans", True, {}, KMeansInit],
    DeadCodeRevival | None: [True, {}],
    Sequence[int]: ["345", 5, [2.9, 3.7], [True, 2], np.array([1, 2])],
}
"""Type of an argument -> values of other types. Plain tables build objects in a config.json only."""


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CASES)
def test_values_of_other_types_are_refused_by_name(name: str) -> None:
    """What a constructor takes can be saved and loaded again."""
    kind = QUANTIZERS[CASES[name]["type"]]
    arguments = {key: _part(key, value) for key, value in CASES[name].items() if key != "type"}
    for key, hint in get_type_hints(kind.__init__).items():
        for value in WRONG.get(hint, []):
            with pytest.raises(ValueError, match=rf"^{key}: got "):
                kind(**arguments | {key: value})


@pytest.mark.usefixtures("unchecked")
def test_parts_of_another_kind_are_refused_by_name() -> None:
    part, scales = VectorQuantizer(8, 4), MultiScaleQuantizer(8, 4, (1, 2))
    for kind in (ResidualQuantizer, GroupedQuantizer):
        for wrong in (part, [scales], [{"type": "VectorQuantizer"}], (part for _ in range(2))):
            with pytest.raises(ValueError, match=r"^quantizers: got "):
                kind(wrong)
    for wrong in (scales, "VectorQuantizer", torch.nn.Linear(4, 4)):
        with pytest.raises(ValueError, match=r"^quantizer: got "):
            ProjectedQuantizer(4, wrong)
        with pytest.raises(ValueError, match=r"^quantizer: got "):
            MultiScaleQuantizer(8, 4, (1, 2), quantizer=wrong)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["vector", "multi-scale"])
def test_latents_that_are_no_tensors_are_refused(name: str) -> None:
    quantizer = quantizer_from_config(CASES[name])
    z = torch.zeros(1, 4, 4, 4)
    for wrong in ([[1.0]], z.numpy(), None):
        for call in (quantizer, quantizer.encode):
            with pytest.raises(ValueError, match=rf"^z: got a {type(wrong).__name__}, expected a Tensor"):
                call(wrong)
    with pytest.raises(ValueError, match=r"^mask: got a list, expected a Tensor"):
        quantizer(z, mask=[[True]])


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_known_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        quantizer = quantizer_from_config(CASES[name])
        z = torch.empty(2, quantizer.embedding_dim, 4, 4)
    for mode in (True, False):
        assert quantizer.train(mode)(z).quantized.shape == z.shape
    assert quantizer.decode(quantizer.encode(z)).shape == z.shape
