"""One device: its model, its KV cache, and how large that cache is."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from paged_stream.attention.select import make_backend
from paged_stream.config import EngineConfig
from paged_stream.layers.rank_group import RankGroup
from paged_stream.models.adapters import load_adapter
from paged_stream.models.fingerprint import sample_weights
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.key_balance import balance_keys
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.models.loader import load_model
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.sharding import WHOLE, Rank, shard_config
from paged_stream.scheduler.output import KVOperation, ModelOutput, SchedulerOutput
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.system.processor_quota import default_num_threads
from paged_stream.system.processor_threads import processor_threads
from paged_stream.worker.cuda_graphs import CudaRecorder, GraphLimits
from paged_stream.worker.device import check_settings, prepare_device, resolve_device
from paged_stream.worker.kv_cache import CachePlan, KVCache
from paged_stream.worker.layer_check import LayerCheck
from paged_stream.worker.memory import (
    available_memory,
    blocks_per_stream,
    explain_shortage,
    largest_step,
    measure,
    memory_budget,
    plan_cache,
)
from paged_stream.worker.model_runner import ModelRunner
from paged_stream.worker.parking import ParkedStore

logger = logging.getLogger(__name__)


def resolve_dtype(name: str | torch.dtype, checkpoint: torch.dtype) -> torch.dtype:
    """Turn ``EngineConfig.dtype`` into a dtype."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, str(name))
        return dtype
    return torch.float32 if checkpoint == torch.float32 else torch.bfloat16


def resolve_kv_dtype(name: str | torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """Turn ``EngineConfig.kv_cache_dtype`` into a dtype, for a model that computes in ``dtype``."""
    return {"auto": dtype, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[str(name)]


class Worker:
    """Loads a model, or its rank's part of one, and runs steps on it.

    Args:
        model_config: of the whole model.
        group: the ranks that share the model; ``None`` if there is one.
    """

    def __init__(
        self,
        config: EngineConfig,
        files: ModelFiles,
        model_config: ModelConfig,
        sink_window: SinkWindow,
        group: RankGroup | None = None,
    ) -> None:
        self._num_threads = config.num_threads or default_num_threads()
        self.device = resolve_device(config.device)
        check_settings(config, self.device)
        prepare_device(self.device)
        dtype = resolve_dtype(config.dtype, model_config.dtype)
        kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype)
        rank = WHOLE if group is None else Rank(group.rank, group.size)
        self._part = shard_config(model_config, rank)
        backend = make_backend(
            config.attention_backend,
            model_config.head_dim,
            config.block_size,
            dtype,
            kv_dtype,
            model_config.attention_features(),
        )
        plan: CachePlan | None = None
        if (budget := memory_budget(config, self.device)) is not None:
            # Before the weights are read: a cache that cannot be is reported at once.
            plan = plan_cache(config, self._part, kv_dtype, sink_window, budget)
        self.parked = ParkedStore(
            _parking_budget(config), Path(config.parking_dir) if config.parking_dir else None
        )
        with self._on_device("loading the model", "use a device with more memory"):
            quantization = config.actual_quantization if self.device.type == "cpu" else None
            model = load_model(
                files, model_config, dtype, self.device, backend, quantization, rank, group
            )
            self.weight_samples = sample_weights(model, model_config, rank)
            if kv_dtype == torch.int8:
                balance_keys(model)
            model.pack_weights()
        self._model, self._kv_dtype = model, kv_dtype
        self.cache_plan = plan or self._measure_plan(config, sink_window)
        with self._on_device(
            f"allocating a KV cache of {self.cache_plan.num_bytes} bytes",
            "lower gpu_memory_utilization or kv_cache_memory_bytes",
        ):
            # One block more than the scheduler knows of, for rows that only fill up a batch.
            self._runner = self._make_runner(config, self.cache_plan.num_blocks + 1)
        # A processor that runs the kernels has nobody to wait for, and a backend that plans on the
        # host has to see every step.
        runs_alone = self.device.type == "cuda" and not backend.needs_host_batch
        runs_alone = runs_alone and group is None  # ranks meet in every layer
        self.default_decode_steps = 8 if runs_alone else 1
        if runs_alone and config.cuda_graphs and not config.check_layers:
            with self._on_device("recording decode steps", "pass cuda_graphs=False"):
                self._record_graphs(config, sink_window)
        logger.info("%d blocks of %d tokens", self.cache_plan.num_blocks, config.block_size)

    def _measure_plan(self, config: EngineConfig, sink_window: SinkWindow) -> CachePlan:
        """Run the largest step, which does not need a whole cache, and see what it leaves."""
        num_tokens = config.max_num_batched_tokens
        step = largest_step(config, self._part, sink_window, num_tokens)
        with self._on_device(
            f"running a step of {num_tokens} tokens", "lower max_num_batched_tokens"
        ):
            use = measure(
                self.device, lambda: self._make_runner(config, num_blocks=1).execute(step)
            )
        budget = use.left_for_cache(config.gpu_memory_utilization)
        logger.info("%d bytes for the KV cache: %s", budget, use)
        return plan_cache(config, self._part, self._kv_dtype, sink_window, budget, use)

    def _record_graphs(self, config: EngineConfig, sink_window: SinkWindow) -> None:
        limits = GraphLimits(
            num_rows=config.actual_max_num_seqs,
            table_width=blocks_per_stream(config, self._part, sink_window, chunk=1),
            num_steps=config.num_decode_steps or self.default_decode_steps,
            padding_block=self.cache_plan.num_blocks,
            block_size=config.block_size,
        )
        self._runner.record_graphs(limits, CudaRecorder())

    def _make_runner(self, config: EngineConfig, num_blocks: int) -> ModelRunner:
        model_config = self._part
        kv_cache = KVCache(
            num_layers=model_config.num_layers,
            num_blocks=num_blocks,
            num_kv_heads=model_config.num_kv_heads,
            block_size=config.block_size,
            head_dim=model_config.head_dim,
            dtype=self._kv_dtype,
            device=self.device,
        )
        check = LayerCheck() if config.check_layers else None
        return ModelRunner(self._model, kv_cache, self.parked, config.block_size, check)

    def execute(self, output: SchedulerOutput) -> ModelOutput:
        with self._on_device("computing a step", "lower gpu_memory_utilization"):
            return self._runner.execute(output)

    def submit(self, output: SchedulerOutput) -> Callable[[], ModelOutput]:
        """Start computing; what comes back waits for the result."""
        with self._on_device("computing a step", "lower gpu_memory_utilization"):
            return self._runner.submit(output)

    def apply(self, operations: Sequence[KVOperation]) -> None:
        with self._on_device("moving K and V", "lower gpu_memory_utilization"):
            self._runner.apply(operations)

    def read(self, slots: array[int]) -> KVTokens:
        with self._on_device("reading K and V", "lower gpu_memory_utilization"):
            return self._runner.read(slots)

    def load_adapter(self, folder: Path) -> str:
        """As `Executor.load_adapter`."""
        with self._on_device("loading an adapter", "lower gpu_memory_utilization"):
            key, adapter = load_adapter(folder, self._model)
        self._runner.adapters[key] = adapter
        return key

    def drop_adapter(self, key: str) -> None:
        """As `Executor.drop_adapter`."""
        del self._runner.adapters[key]

    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of the cache that are reserved, and those of them that are in memory."""
        cache = self._runner.kv_cache
        return cache.tensor.nbytes, cache.resident_bytes

    def close(self) -> None:
        """Free the model, the cache and what was parked; nothing can be computed any more."""
        if (runner := vars(self).pop("_runner", None)) is not None:
            runner.graphs = None  # which refer to it
        vars(self).pop("_model", None)
        self.parked.close()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for others on this device

    @contextmanager
    def _on_device(self, doing: str, advice: str) -> Iterator[None]:
        """Make the device current for this thread, and let a lack of its memory be explained; on
        the CPU, take as many threads as the engine is to have."""
        if self.device.type == "cpu":
            with processor_threads(self._num_threads):
                yield
            return
        with torch.cuda.device(self.device), explain_shortage(self.device, doing, advice):
            yield


def _parking_budget(config: EngineConfig) -> int:
    budget = config.parking_memory_bytes
    assert not isinstance(budget, str)  # EngineConfig has read it
    if budget is None:
        budget = available_memory() // 4
    return budget // config.tensor_parallel_size
