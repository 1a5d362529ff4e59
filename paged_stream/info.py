"""Capacity planning for a model and a window, without loading the weights."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from paged_stream import ops
from paged_stream.config import EngineConfig
from paged_stream.inputs import resolve_sink_window
from paged_stream.models.config import ModelConfig
from paged_stream.models.loader import ModelFiles, load_config, resolve_model
from paged_stream.models.quantization import weight_bytes
from paged_stream.models.registry import family_of
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.worker.worker import (
    blocks_per_stream,
    memory_budget,
    plan_cache,
    resolve_dtype,
    resolve_kv_dtype,
)


def describe(model: str, **settings: Any) -> str:
    """Describe a model's memory needs under the given `EngineConfig` settings.

    Raises:
        ValueError: as `LLMEngine`.
    """
    config = EngineConfig(model=model, **settings)
    files = resolve_model(config.model)
    model_config = load_config(files)
    dtype = resolve_dtype(config.dtype, model_config.dtype)
    kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype)
    sink_window = resolve_sink_window(model_config, config.num_sink_tokens, config.window_size)
    plan = plan_cache(config, model_config, kv_dtype, sink_window)
    stream_blocks = blocks_per_stream(config, model_config, sink_window, chunk=1)
    rows = [
        ("model", f"{model} ({model_config.model_type})"),
        ("weights", _weights(config, files, model_config, dtype)),
        (
            "shape",
            f"{model_config.num_layers} layers, {model_config.num_heads} heads, "
            f"{model_config.num_kv_heads} KV heads of {model_config.head_dim}, "
            f"trained length {model_config.max_position_embeddings:,}",
        ),
        ("each query sees", _visible(model_config, sink_window)),
        (
            "KV per token",
            f"{_size(model_config.kv_bytes_per_token(kv_dtype))} in {_name(kv_dtype)}",
        ),
        ("KV per stream", f"{_size(stream_blocks * plan.block_bytes)} at any length"),
        (
            "KV cache",
            f"{_size(plan.num_blocks * plan.block_bytes)} in {plan.num_blocks:,} blocks of "
            f"{config.block_size} tokens",
        ),
        (
            "streams that fit",
            f"{memory_budget(config) // (stream_blocks * plan.block_bytes):,} in "
            f"{_size(memory_budget(config))}",
        ),
        ("processor", f"{torch.get_num_threads()} threads, {ops.cpu_isa()} kernels"),
        ("attention", _backends()),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def _weights(
    config: EngineConfig, files: ModelFiles, model_config: ModelConfig, dtype: torch.dtype
) -> str:
    plain = model_config.num_parameters * dtype.itemsize
    family = family_of(model_config.model_type)
    actual = weight_bytes(files, model_config, family, dtype, config.quantization)
    if actual == plain:
        return f"{_size(plain)} in {_name(dtype)}"
    kind = "the file's own blocks" if config.quantization == "auto" else config.quantization
    return f"{_size(actual)}, projections in {kind}, the rest in {_name(dtype)}"


def _visible(model_config: ModelConfig, sink_window: SinkWindow) -> str:
    if sink_window.window_size is None:
        return f"all of up to {model_config.max_position_embeddings:,} tokens; it cannot stream"
    text = f"{sink_window.num_sink_tokens} sink tokens + a window of {sink_window.window_size:,}"
    local = [layer.local_window for layer in model_config.layers if layer.local_window]
    if local:
        sizes = " or ".join(f"{size:,}" for size in sorted(set(local)))
        text += f"; in {len(local)} of {model_config.num_layers} layers the last {sizes} at most"
    return text


def _backends() -> str:
    found = importlib.util.find_spec("xformers") is not None
    return "native" + (" (xformers is installed, but works on CUDA only)" if found else "")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.4g} GiB"
