"""Rotary frequencies and tables against transformers and against float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from paged_stream.layers.rotary import RotaryEmbedding
from paged_stream.models.hf_config import CheckpointConfig, rotary_config
from paged_stream.models.llama import Llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing-stated"),
        pytest.param({"rope_theta": 100000.0}, id="theta"),
        pytest.param({"rope_theta": 5e5, "rope_scaling": LLAMA3}, id="llama3-old-names"),
        pytest.param({"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, id="llama3"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 2.5}}, id="linear-old-names"),
        pytest.param({"head_dim": 32, "rope_scaling": None}, id="head-dim"),
    ],
)
def test_frequencies_are_transformers_own(fields):
    oracle = LlamaRotaryEmbedding(LlamaConfig(**(SHAPE | fields)))
    rotary = rotary_config(CheckpointConfig(SHAPE | fields, Llama.defaults))
    assert rotary.inv_freq == tuple(oracle.inv_freq.tolist())
    assert rotary.attention_scaling == oracle.attention_scaling
    assert rotary == rotary_config(LlamaConfig(**(SHAPE | fields)))


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_frequencies_that_depend_on_length_are_refused(kind):
    fields = SHAPE | {"rope_scaling": {"rope_type": kind, "factor": 2.0}}
    with pytest.raises(ValueError, match=f"rope_type='{kind}'.*supported: default, linear, llama3"):
        rotary_config(CheckpointConfig(fields, Llama.defaults))


def test_tables_are_exact_at_any_position():
    inv_freq = tuple((10000.0 ** -(torch.arange(8) / 8)).tolist())
    positions = np.array([0, 1, 8191, 4_000_000, 10_000_000_000])
    tables = RotaryEmbedding(inv_freq, 1.5, torch.device("cpu")).tables(torch.tensor(positions))
    angles = positions[:, None] * np.array(inv_freq)
    expected = 1.5 * np.concatenate((np.cos(angles), np.sin(angles)), axis=-1)
    assert tables.dtype == torch.float32
    np.testing.assert_allclose(tables.numpy(), expected, atol=1e-6)
