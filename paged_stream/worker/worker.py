"""One device: its model, its KV cache, and how large that cache is."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch

from paged_stream.attention.native import NativeBackend
from paged_stream.config import EngineConfig
from paged_stream.kv_tokens import KVTokens
from paged_stream.models.config import ModelConfig
from paged_stream.models.decoder import Decoder
from paged_stream.models.files import ModelFiles
from paged_stream.models.key_balance import balance_keys
from paged_stream.models.loader import load_model
from paged_stream.scheduler.output import KVOperation, ModelOutput, SchedulerOutput
from paged_stream.scheduler.sink_window import SinkWindow, cdiv
from paged_stream.worker.kv_cache import CachePlan, KVCache
from paged_stream.worker.model_runner import ModelRunner
from paged_stream.worker.parking import ParkedStore

logger = logging.getLogger(__name__)

_DEFAULT_KV_BYTES = 4 << 30
_SAMPLES = 64  # of each parameter, for the fingerprint


def memory_budget(config: EngineConfig) -> int:
    """Bytes that K and V may take.

    Raises:
        ValueError: more is asked for than this machine has.
    """
    budget = config.kv_cache_memory_bytes
    if budget is None:
        return min(_DEFAULT_KV_BYTES, _available_memory() // 2)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if budget > total:
        raise ValueError(
            f"kv_cache_memory_bytes must be at most this machine's memory ({total}), got {budget}"
        )
    return budget


def plan_cache(
    config: EngineConfig, model_config: ModelConfig, kv_dtype: torch.dtype, sink_window: SinkWindow
) -> CachePlan:
    """Decide how many blocks to have.

    Raises:
        ValueError: the memory does not hold one stream; names the least that would.
    """
    block_bytes = model_config.kv_bytes_per_token(kv_dtype) * config.block_size
    least = blocks_per_stream(config, model_config, sink_window, chunk=1)
    most = blocks_per_stream(config, model_config, sink_window, chunk=config.max_num_batched_tokens)
    budget = memory_budget(config)
    if config.kv_cache_memory_bytes is None:
        assert config.max_num_seqs is not None
        budget = min(budget, most * config.max_num_seqs * block_bytes)
    num_blocks = budget // block_bytes
    if num_blocks < least:
        raise ValueError(
            f"kv_cache_memory_bytes={budget} is too little for one stream: "
            f"num_sink_tokens={sink_window.num_sink_tokens} and "
            f"window_size={sink_window.window_size} need {least * block_bytes} bytes; raise it"
            f"{'' if model_config.learned_positions else ' or lower window_size'}"
        )
    return CachePlan(num_blocks=num_blocks, block_bytes=block_bytes)


def blocks_per_stream(
    config: EngineConfig, model_config: ModelConfig, sink_window: SinkWindow, *, chunk: int
) -> int:
    """Most blocks that a stream holds while ``chunk`` of its tokens are computed at a time."""
    if sink_window.window_size is None:
        return cdiv(model_config.max_position_embeddings, config.block_size)
    sinks = sink_window.num_sink_blocks(config.block_size)
    return sinks + sink_window.ring_blocks(chunk, config.block_size)


def resolve_dtype(name: str, checkpoint: torch.dtype) -> torch.dtype:
    """Turn ``EngineConfig.dtype`` into a dtype."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    return torch.float32 if checkpoint == torch.float32 else torch.bfloat16


def resolve_kv_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Turn ``EngineConfig.kv_cache_dtype`` into a dtype, for a model that computes in ``dtype``."""
    return dtype if name == "auto" else torch.int8


class Worker:
    """Loads a model and runs steps on it."""

    def __init__(
        self,
        config: EngineConfig,
        files: ModelFiles,
        model_config: ModelConfig,
        sink_window: SinkWindow,
    ) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        device = torch.device("cpu")
        dtype = resolve_dtype(config.dtype, model_config.dtype)
        # Before the weights are read: a cache that cannot be is reported at once.
        kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype)
        self.cache_plan = plan_cache(config, model_config, kv_dtype, sink_window)
        model = load_model(files, model_config, dtype, device, NativeBackend(), config.quantization)
        self.fingerprint = _fingerprint(model)
        if kv_dtype == torch.int8:
            balance_keys(model)
        model.pack_weights()
        kv_cache = KVCache(
            num_layers=model_config.num_layers,
            num_blocks=self.cache_plan.num_blocks,
            num_kv_heads=model_config.num_kv_heads,
            block_size=config.block_size,
            head_dim=model_config.head_dim,
            dtype=kv_dtype,
            device=device,
        )
        self.parked = ParkedStore(
            _parking_budget(config), Path(config.parking_dir) if config.parking_dir else None
        )
        self._runner = ModelRunner(model, kv_cache, self.parked, config.block_size)
        logger.info("%d blocks of %d tokens", self.cache_plan.num_blocks, config.block_size)

    def execute(self, output: SchedulerOutput) -> ModelOutput:
        return self._runner.execute(output)

    def apply(self, operations: Sequence[KVOperation]) -> None:
        self._runner.apply(operations)

    def read(self, slots: array[int]) -> KVTokens:
        return self._runner.read(slots)


def _parking_budget(config: EngineConfig) -> int:
    if config.parking_memory_bytes is not None:
        return config.parking_memory_bytes
    return _available_memory() // 4


def _fingerprint(model: Decoder) -> str:
    """Digest of a sample of every weight: the same for the same weights in the same precision."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
        step = max(1, parameter.numel() // _SAMPLES)
        sample = parameter.flatten()[::step][:_SAMPLES].float().cpu()
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _available_memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
