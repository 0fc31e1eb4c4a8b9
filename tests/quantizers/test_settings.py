"""A quantizer's arguments are named once, in its constructor: signature, attributes and `config()` agree."""

import inspect

import pytest
import torch
from every_quantizer import CASES

from smalti.quantizers import (
    BinarySphericalQuantizer,
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    MultiScaleQuantizer,
    VectorQuantizer,
    quantizer_from_config,
)
from smalti.quantizers.rebuild import QUANTIZERS

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
