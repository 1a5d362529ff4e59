"""Reading config.json as transformers does, without importing its model classes.

Importing one ``transformers.models`` configuration class costs 1.5 s of start-up, so the fields
are read as they are; rotary parameters go through transformers' own functions, hence are exact.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin

from paged_stream.layers.mlp import ACTIVATIONS
from paged_stream.models.config import RotaryConfig

# Kinds whose frequencies do not depend on how long the sequence is.
FIXED_ROPE_TYPES = ("default", "linear", "llama3")


class CheckpointConfig(RotaryEmbeddingConfigMixin):
    """The fields of config.json as attributes, rotary ones in transformers' present form."""

    def __init__(self, fields: dict[str, Any], defaults: dict[str, Any]) -> None:
        fields = copy.deepcopy(fields)
        scaling = fields.pop("rope_scaling", None)
        dtype = fields.pop("torch_dtype", None)  # the name before transformers 5
        self.rope_parameters: dict[str, Any] | None = None
        self.__dict__.update(defaults | {"dtype": dtype} | fields)
        self.convert_rope_params_to_dict(rope_scaling=scaling)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"field {name!r} is missing")


def rotary_config(config: Any) -> RotaryConfig:
    """Compute the frequencies of a config with transformers' attribute names."""
    parameters = config.rope_parameters
    kind = parameters["rope_type"]
    if kind not in FIXED_ROPE_TYPES:
        raise ValueError(
            f"rope_type={kind!r} is not supported; supported: {', '.join(FIXED_ROPE_TYPES)}"
        )
    if kind == "default":
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        inv_freq, scaling = 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    else:
        try:
            inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](config)
        except KeyError as error:
            raise ValueError(f"rope_type={kind!r} needs the rotary parameter {error}") from None
    return RotaryConfig(inv_freq=tuple(inv_freq.tolist()), attention_scaling=float(scaling))


def dtype_of(config: Any) -> torch.dtype:
    name = str(config.dtype or "float32").removeprefix("torch.")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={name!r} in config.json is not a floating-point torch dtype")
    return dtype


def activation(config: Any) -> str:
    name: str = config.hidden_act
    if name not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act={name!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return name


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
