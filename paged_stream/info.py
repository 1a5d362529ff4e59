"""Capacity planning for a model and a window, without loading the weights."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

import torch

from paged_stream import ops
from paged_stream.config import EngineConfig
from paged_stream.engine.windows import resolve_sink_window
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.formats.quantization import BlockParts, planned_parts, weight_bytes
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.registry import family_of
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.system.processor_quota import default_num_threads
from paged_stream.worker.device import check_settings, resolve_device
from paged_stream.worker.memory import blocks_per_stream, memory_budget, plan_cache
from paged_stream.worker.worker import resolve_dtype, resolve_kv_dtype


def describe(model: str, **settings: Any) -> str:
    """Describe a model's memory needs under the given `EngineConfig` settings.

    Raises:
        ValueError: as `LLMEngine`.
    """
    config = EngineConfig(model=model, **settings)
    files = resolve_model(
        config.model,
        cache_dir=config.cache_dir,
        with_tokenizer=config.tokenizer is None,
        merge_lora=config.merge_lora,
    )
    model_config = load_config(files)
    device = resolve_device(config.device)
    check_settings(config, device)
    dtype = resolve_dtype(config.dtype, model_config.dtype)
    kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype)
    sink_window = resolve_sink_window(model_config, config.num_sink_tokens, config.window_size)
    parts = _parts(config, files, model_config, device)
    budget = memory_budget(config, device)
    if budget is None:  # an engine would measure what activations take as well
        free, total = torch.cuda.mem_get_info(device)
        weights = weight_bytes(model_config, dtype, parts)
        budget = int(total * config.gpu_memory_utilization) - (total - free) - weights
    plan = plan_cache(config, model_config, kv_dtype, sink_window, budget)
    stream_blocks = blocks_per_stream(config, model_config, sink_window, chunk=1)
    threads = config.num_threads or default_num_threads()
    rows = [
        ("model", f"{model} ({model_config.model_type})"),
        ("weights", _weights(config, model_config, dtype, parts)),
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
            f"{_size(plan.num_bytes)} reserved in {plan.num_blocks:,} blocks of "
            f"{config.block_size} tokens, resident {_when_resident(device)}",
        ),
        (
            "streams that fit",
            f"{budget // (stream_blocks * plan.block_bytes):,} in {_size(budget)}",
        ),
        (
            "processor",
            f"{threads} threads, {ops.cpu_isa()} kernels",
        ),
        ("device", _device(device)),
        ("attention", _backends(device)),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def _parts(
    config: EngineConfig, files: ModelFiles, model_config: ModelConfig, device: torch.device
) -> BlockParts:
    quantization = config.actual_quantization if device.type == "cpu" else None
    return planned_parts(files, model_config, family_of(model_config.model_type), quantization)


def _weights(
    config: EngineConfig,
    model_config: ModelConfig,
    dtype: torch.dtype,
    parts: BlockParts,
) -> str:
    actual = _size(weight_bytes(model_config, dtype, parts))
    if not parts:
        return f"{actual} in {_name(dtype)}"
    counts = Counter(kind for formats in parts.values() for kind, _ in formats)
    kinds = ", ".join(kind for kind, _ in counts.most_common())
    quantization = config.actual_quantization
    source = f"the file's own blocks ({kinds})" if quantization == "auto" else quantization
    count, total = len(parts.keys() - {"embedding"}), model_config.num_projections
    what = "all projections" if count == total else f"{count} of {total} projections"
    table = "embeddings and " if "embedding" in parts else ""
    return f"{actual}, {table}{what} in {source}, the rest in {_name(dtype)}"


def _visible(model_config: ModelConfig, sink_window: SinkWindow) -> str:
    if sink_window.window_size is None:
        return f"all of up to {model_config.max_position_embeddings:,} tokens; it cannot stream"
    text = f"{sink_window.num_sink_tokens} sink tokens + a window of {sink_window.window_size:,}"
    local = [layer.local_window for layer in model_config.layers if layer.local_window]
    if local:
        sizes = " or ".join(f"{size:,}" for size in sorted(set(local)))
        text += f"; in {len(local)} of {model_config.num_layers} layers the last {sizes} at most"
    return text


def _when_resident(device: torch.device) -> str:
    return "as streams fill them" if device.type == "cpu" else "from the start"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        return (
            f"{device}, {properties.name}, compute capability {properties.major}."
            f"{properties.minor}, {_size(free)} of {_size(total)} free"
        )
    if not torch.cuda.is_available():
        return "cpu; torch finds no CUDA device"
    has_kernels = "" if ops.has_cuda() else ", for which the op library has no kernels"
    return f"cpu; there is a CUDA device{has_kernels}"


def _backends(device: torch.device) -> str:
    if importlib.util.find_spec("xformers") is None:
        return "native"
    if device.type == "cuda":
        return "native, xformers"
    return "native (xformers is installed, but works on CUDA only)"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.4g} GiB"
