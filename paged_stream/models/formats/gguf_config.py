"""From a GGUF file's metadata to the fields of config.json.

llama.cpp's own reader is the measure: what it assumes where a file says nothing is assumed here.
Metadata that is not understood is refused, because it may change what the model computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paged_stream.models.formats.gguf_file import GGUFFile
from paged_stream.models.formats.gguf_vocabulary import special_ids
from paged_stream.system.short_text import short

ROPE_FACTORS = "rope_freqs.weight"  # one per pair, dividing its frequency; in Llama 3.1 and later
SAME_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
# Of Gemma: every how many layers one sees everything, the window where a file names none, and how
# many layers the one size has whose scores are scaled by the hidden size per head.
GEMMA = {"gemma2": (2, 4096, 46), "gemma3": (6, None, 62)}


def config_fields(
    file: GGUFFile, model_type: str, rope_factors: list[float] | None
) -> dict[str, Any]:
    """Collect what transformers' configuration class is built from.

    Args:
        rope_factors: content of the tensor `ROPE_FACTORS`, if the file has it.

    Raises:
        ValueError: names metadata that are missing or cannot be represented.
    """
    architecture = file.metadata["general.architecture"]
    prefix = f"{architecture}."
    metadata = {
        key.removeprefix(prefix): _as_written(value)
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    missing = [prefix + key for key in SAME_FIELDS if key not in metadata]
    for key in ("attention.head_count", "embedding_length", "block_count", "context_length"):
        _check_positive(prefix + key, metadata.get(key, 1))
    embedding = file.tensors.get("token_embd.weight")
    if missing or embedding is None:
        raise ValueError(f"it lacks {', '.join(missing or ['token_embd.weight'])}")
    fields = {field: metadata.pop(key) for key, field in SAME_FIELDS.items()}
    num_heads = fields["num_attention_heads"]
    fields |= {
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "num_key_value_heads": metadata.pop("attention.head_count_kv", num_heads),
        "head_dim": _head_dim(metadata, fields["hidden_size"] // num_heads),
    }
    fields["rope_parameters"] = _rope(metadata, architecture, fields, rope_factors)
    if architecture in GEMMA:
        fields |= _gemma(metadata, architecture, fields)
    if unknown := [prefix + key for key, value in metadata.items() if not _harmless(key, value)]:
        raise ValueError(
            f"{', '.join(unknown)} not understood; pass the model's safetensors folder"
        )
    return fields | _special_tokens(file.metadata)


def _as_written(value: Any) -> Any:
    """A float as it was before it became float32: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _harmless(key: str, value: Any) -> bool:
    """Whether metadata that nothing asks for changes nothing."""
    return (
        key in HARMLESS
        or (key.startswith("expert_") and not value)
        or (key == "attention.causal" and value is True)
    )


def _head_dim(metadata: dict[str, Any], default: int) -> int:
    head_dim: int = metadata.pop("attention.key_length", default)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := metadata.pop(key, head_dim)) != head_dim:
            raise ValueError(f"{key}={size} is not supported, only the size of keys, {head_dim}")
    return head_dim


def _rope(
    metadata: dict[str, Any],
    architecture: str,
    fields: dict[str, Any],
    factors: list[float] | None,
) -> dict[str, Any]:
    """Take the rotary parameters out of ``metadata``."""
    length = fields["max_position_embeddings"]
    rope = {"rope_type": "default", "rope_theta": metadata.pop("rope.freq_base", 10000.0)}
    kind = metadata.pop("rope.scaling.type", "linear")
    factor = metadata.pop("rope.scale_linear", None)  # its name of old
    factor = metadata.pop("rope.scaling.factor", factor) or 1.0
    original = metadata.pop("rope.scaling.original_context_length", length)
    scaled = kind != "none" and factor != 1.0
    if (
        kind not in ("none", "linear", "yarn")
        or (kind == "yarn" and architecture == "gemma3")
        or (factors is not None and (scaled or architecture != "llama"))
    ):
        also = "" if factors is None else f" together with {ROPE_FACTORS}"
        raise ValueError(
            f"{architecture}.rope.scaling.type={kind!r}{also} is not supported in GGUF; "
            "pass the model's safetensors folder"
        )
    if factors is not None:
        rope |= {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
        rope |= {"attention_factor": 1.0, "original_max_position_embeddings": length}
    elif scaled:
        rope |= {"rope_type": kind, "factor": factor}
    if rope["rope_type"] == "yarn":
        rope["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            if (beta := metadata.pop(f"rope.scaling.yarn_{name}", None)) is not None:
                rope[name] = beta
    return rope


def _gemma(metadata: dict[str, Any], architecture: str, fields: dict[str, Any]) -> dict[str, Any]:
    period, window, odd_size = GEMMA[architecture]
    num_layers, rope = fields["num_hidden_layers"], fields["rope_parameters"]
    window = metadata.pop("attention.sliding_window", window)
    period = metadata.pop("attention.sliding_window_pattern", period)
    local = period if isinstance(period, list) else [(i + 1) % period for i in range(num_layers)]
    kinds = ["sliding_attention" if window and sliding else "full_attention" for sliding in local]
    scalar = fields["head_dim"]
    if num_layers == odd_size:
        scalar = fields["hidden_size"] // fields["num_attention_heads"]
    if architecture == "gemma3":
        theta = metadata.pop("rope.freq_base_swa", 10000.0)
        local_rope = {"rope_type": "default", "rope_theta": theta}
        rope = {"full_attention": rope, "sliding_attention": local_rope}
    scores_cap, logits_cap = (50.0, 30.0) if architecture == "gemma2" else (None, None)
    return {
        "rope_parameters": rope,
        "layer_types": kinds,
        "sliding_window": window,
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": metadata.pop("attn_logit_softcapping", scores_cap),
        "final_logit_softcapping": metadata.pop("final_logit_softcapping", logits_cap),
    }


def _check_positive(key: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} must be an integer >= 1, got {short(value)}")


def _special_tokens(metadata: dict[str, Any]) -> dict[str, Any]:
    """Ends of a sequence, of a turn and of a message all end a sequence."""
    ids = special_ids(metadata)
    ends = [ids[name] for name in ("eos", "eot", "eom") if name in ids]
    return {
        "bos_token_id": ids.get("bos"),
        "pad_token_id": ids.get("padding"),
        "eos_token_id": list(dict.fromkeys(ends)) or None,
    }
