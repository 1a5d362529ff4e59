"""Rotary frequencies and tables against transformers' own modules and float64 arithmetic."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paged_stream.layers.rotary import RotaryEmbedding
from paged_stream.models.hf_config import read_config
from paged_stream.models.registry import family_of
from tests.family_reference import VARIANTS, tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.03 * pair for pair in range(32)],
    "long_factor": [1.0 + 0.9 * pair for pair in range(32)],
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}
PHI3 = LLAMA | {"model_type": "phi3", "pad_token_id": None}
GEMMA3 = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 32}


def describe(fields, length=None):
    """The ModelConfig of a config.json with these fields."""
    family = family_of(fields["model_type"])
    fields = copy.deepcopy(fields)  # transformers' classes change what they are given
    config = family.describe(family.read_config(fields), length)
    # Llama has a way of its own to the same configuration.
    assert config == family.describe(read_config(*family.config_class, fields), length)
    return config


def oracle(fields):
    """Transformers' rotary module, as its model makes it."""
    config = AutoConfig.for_model(**copy.deepcopy(fields))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    rotary = type(model.base_model.rotary_emb)
    return rotary(config)


def frequencies_at(rotary, length, layer_type=None):
    """What a sequence of this length is rotated with, and the factor on cosines and sines."""
    prefix = f"{layer_type}_" if layer_type else ""
    arguments = {"layer_type": layer_type} if layer_type else {}
    rotary(torch.zeros(1), torch.arange(length)[None], **arguments)
    scaling = getattr(rotary, f"{prefix}attention_scaling")
    return tuple(getattr(rotary, f"{prefix}inv_freq").tolist()), scaling


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(LLAMA, id="nothing-stated"),
        pytest.param(LLAMA | {"rope_theta": 100000.0}, id="theta"),
        pytest.param(LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3}, id="llama3-old-names"),
        pytest.param(LLAMA | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, id="llama3"),
        pytest.param(
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.5}}, id="linear-old-names"
        ),
        pytest.param(LLAMA | {"head_dim": 32, "rope_scaling": None}, id="head-dim"),
        pytest.param(LLAMA | {"rope_scaling": YARN | {"rope_type": "yarn"}}, id="yarn"),
        pytest.param(
            LLAMA
            | {
                "rope_scaling": YARN
                | {"type": "yarn", "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5}
            },
            id="yarn-everything-stated",
        ),
        pytest.param(VARIANTS["stablelm"], id="partial-in-rope-parameters"),
        pytest.param(VARIANTS["gpt_neox"], id="partial-as-rotary-pct"),
        pytest.param(
            LLAMA | {"model_type": "stablelm", "partial_rotary_factor": 0.25}, id="partial-at-top"
        ),
        pytest.param(
            PHI3 | {"partial_rotary_factor": 0.75, "rope_scaling": None}, id="partial-phi4"
        ),
    ],
)
def test_frequencies_are_transformers_own(fields):
    expected = frequencies_at(oracle(fields), 8)
    for length in (None, 5, 100_000):
        rotary = describe(fields, length).layers[0].rotary
        assert (rotary.inv_freq, rotary.attention_scaling) == expected
        assert (rotary.min_length, rotary.max_length) == (1, None)


LONG = PHI3 | {"original_max_position_embeddings": 64, "rope_scaling": LONGROPE}
DYNAMIC = LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}


@pytest.mark.parametrize(
    ("fields", "length", "valid"),
    [
        (LONG, 5, (1, 64)),
        (LONG, 64, (1, 64)),
        (LONG, 65, (65, None)),
        (LONG, 5000, (65, None)),
        (DYNAMIC, 5, (1, 512)),
        (DYNAMIC, 512, (1, 512)),
        (DYNAMIC, 513, (513, 513)),
        (DYNAMIC, 2000, (2000, 2000)),
    ],
)
def test_frequencies_that_depend_on_length(fields, length, valid):
    config = describe(fields, length)
    rotary = config.layers[0].rotary
    # As transformers computes them anew for a sequence that long.
    expected, scaling = frequencies_at(oracle(fields), length)
    assert (rotary.inv_freq, rotary.attention_scaling) == (expected, scaling)
    assert (rotary.min_length, rotary.max_length) == valid
    # All that is promised of other lengths is true, and nothing that is not.
    for other in (1, 64, 65, 512, 513, 2000, 5000):
        same = frequencies_at(oracle(fields), other)[0] == rotary.inv_freq
        assert config.is_exact_at(other) == same, other


def test_trained_length_is_the_default():
    assert describe(DYNAMIC) == describe(DYNAMIC, 512)
    assert describe(LONG) == describe(LONG, 512) != describe(LONG, 64)


OLD_GEMMA3 = GEMMA3 | {
    "rope_theta": 2e6,
    "rope_local_base_freq": 5e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "sliding_window": 11,
    "sliding_window_pattern": 3,
}
NEW_GEMMA3 = GEMMA3 | {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
    },
    "sliding_window": 11,
    "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2 + ["sliding_attention"],
}


@pytest.mark.parametrize("fields", [OLD_GEMMA3, NEW_GEMMA3], ids=["hub", "transformers-5"])
def test_gemma3_layers_of_two_kinds(fields):
    config = describe(fields)
    assert [layer.local_window for layer in config.layers] == [11, 11, None, 11, 11, None, 11]
    module = oracle(NEW_GEMMA3)
    for layer in config.layers:
        kind = "full_attention" if layer.local_window is None else "sliding_attention"
        rotary = (layer.rotary.inv_freq, layer.rotary.attention_scaling)
        assert rotary == frequencies_at(module, 8, kind)
    assert config == describe(OLD_GEMMA3)


def test_gemma3_layers_when_nothing_is_stated():
    module = oracle(GEMMA3)
    layers = describe(GEMMA3).layers
    assert [layer.local_window for layer in layers] == [4096] * 5 + [None, 4096]
    for layer, kind in ((layers[0], "sliding_attention"), (layers[5], "full_attention")):
        rotary = (layer.rotary.inv_freq, layer.rotary.attention_scaling)
        assert rotary == frequencies_at(module, 8, kind)


def test_gptj_frequencies():
    """Transformers has them as a table of sines and cosines only."""
    model = tiny_model("gptj")
    module = sys.modules[type(model).__module__]
    rotary = describe(VARIANTS["gptj"]).layers[0].rotary
    angles = torch.arange(40)[:, None] * torch.tensor(rotary.inv_freq)
    table = module.create_sinusoidal_positions(40, VARIANTS["gptj"]["rotary_dim"])
    assert torch.equal(table, torch.cat((angles.sin(), angles.cos()), dim=1))


def test_layers_without_rope():
    rotaries = [layer.rotary for layer in describe(VARIANTS["smollm3"]).layers]
    assert [rotary is not None for rotary in rotaries] == [True, False, True, False]


def test_unknown_kinds_are_refused():
    fields = LLAMA | {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}
    with pytest.raises(ValueError, match="rope_type='proportional' .*supported: default, linear"):
        describe(fields)


def test_tables_are_exact_at_any_position():
    inv_freq = tuple((10000.0 ** -(torch.arange(8) / 8)).tolist())
    positions = np.array([0, 1, 8191, 4_000_000, 10_000_000_000])
    embedding = RotaryEmbedding(inv_freq, 1.5, torch.device("cpu"))
    tables = embedding.tables(torch.tensor(positions), torch.tensor(positions[::-1].copy()))
    angles = positions[:, None] * np.array(inv_freq)
    expected = 1.5 * np.concatenate((np.cos(angles), np.sin(angles)), axis=-1)
    assert tables.rotary.dtype == tables.sink_rotary.dtype == torch.float32
    np.testing.assert_allclose(tables.rotary.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(tables.sink_rotary.numpy(), expected[::-1], atol=1e-6)
    assert embedding.tables(torch.tensor(positions)).sink_rotary is None
