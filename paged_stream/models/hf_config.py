"""From config.json to the parts of a `ModelConfig` that most families share.

Fields go through transformers' configuration classes and rotary parameters through its functions,
so defaults, old names and frequencies are exactly transformers' own. A configuration class is
imported from its own module, which costs a fraction of what transformers' top level does.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from paged_stream.layers.mlp import ACTIVATIONS
from paged_stream.models.config_limits import read_token_ids
from paged_stream.models.model_config import LayerConfig, ModelConfig, RotaryConfig
from paged_stream.system.short_text import short_error

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")


def read_config(package: str, name: str, fields: dict[str, Any]) -> Any:
    """Build ``transformers.models.<package>``'s configuration class ``name`` from config.json.

    Raises:
        ValueError: transformers refuses the fields.
    """
    module = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    return build_config(getattr(module, name), fields)


def build_config(kind: Any, fields: dict[str, Any]) -> Any:
    """Build a configuration of the given class from config.json.

    Raises:
        ValueError: transformers refuses the fields.
    """
    try:
        return kind.from_dict(fields)
    except Exception as error:  # its validators raise errors of many kinds
        reason = error.__cause__ or error  # validators wrap what they found
        raise ValueError(short_error(reason)) from error


def standard_config(config: Any, layers: Iterable[LayerConfig], **features: Any) -> ModelConfig:
    """Fill in what configurations name alike; ``features`` are other fields of `ModelConfig`."""
    num_heads = config.num_attention_heads
    fields: dict[str, Any] = {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or num_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        "layers": tuple(layers),
        "eos_token_ids": read_token_ids("eos_token_id", config.eos_token_id),
        "dtype": dtype_of(config),
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    for field in ("max_position_embeddings", "intermediate_size", "hidden_act"):
        if field not in features:
            fields[field] = getattr(config, field)
    fields |= features
    if padding := -fields["head_dim"] % 8:
        fields["attention_scale"] = fields.get("attention_scale") or fields["head_dim"] ** -0.5
        fields |= {"head_dim": fields["head_dim"] + padding, "head_padding": padding}
    result = ModelConfig(**fields)
    if result.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"activation {result.hidden_act!r} is not supported; "
            f"supported: {', '.join(ACTIVATIONS)}"
        )
    return result


def local_windows(config: Any) -> list[int | None]:
    """Each layer's own window: ``sliding_window``, in the layers that ``layer_types`` names, or in
    all layers where the configuration has no such field. ``None`` is no window."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    known = {"full_attention": None, "sliding_attention": config.sliding_window}
    if len(kinds) != config.num_hidden_layers or not known.keys() >= set(kinds):
        raise ValueError(
            f"layer_types must be {config.num_hidden_layers} of {', '.join(known)}, got {kinds!r}"
        )
    return [known[kind] for kind in kinds]


def rotary_config(config: Any, length: int | None, layer_type: str | None = None) -> RotaryConfig:
    """Compute a configuration's rotary frequencies.

    Args:
        length: tokens that a query sees at most, on which some kinds depend; ``None`` is the
            trained length.
        layer_type: selects the parameters where they are stated by type of layer.
    """
    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    length = length or config.max_position_embeddings
    kind = parameters["rope_type"]
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_type={kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if kind == "default":
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        inv_freq, scaling = default_frequencies(parameters["rope_theta"], rotary_dim), 1.0
    else:
        try:
            inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](
                config, torch.device("cpu"), seq_len=length, layer_type=layer_type
            )
        except KeyError as error:
            raise ValueError(f"rope_type={kind!r} needs the rotary parameter {error}") from None
    lengths: tuple[int, int | None] = (1, None)
    if kind == "dynamic":
        trained = config.max_position_embeddings
        lengths = (1, trained) if length <= trained else (length, length)
    elif kind == "longrope" and parameters["short_factor"] != parameters["long_factor"]:
        short = parameters["original_max_position_embeddings"]
        lengths = (1, short) if length <= short else (short + 1, None)
    return RotaryConfig(
        inv_freq=tuple(inv_freq.tolist()),
        attention_scaling=float(scaling),
        min_length=lengths[0],
        max_length=lengths[1],
    )


def default_frequencies(theta: float, rotary_dim: int) -> torch.Tensor:
    """Return float32 [rotary_dim / 2], rounded as transformers does."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return 1.0 / (theta**exponents)


def dtype_of(config: Any) -> torch.dtype:
    name = str(config.dtype or "float32").removeprefix("torch.")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={name!r} in config.json is not a floating-point torch dtype")
    return dtype


def refuse(config: Any, **supported: Any) -> None:
    """Raise ValueError for a field whose value is not the one that is supported."""
    for field, value in supported.items():
        if getattr(config, field) != value:
            raise ValueError(f"{field}={getattr(config, field)!r} is not supported, only {value!r}")
