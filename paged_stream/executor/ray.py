"""Workers that share one model, each in a process of its own that Ray places and starts.

Every step's message goes to all ranks through calls of their actors. What they exchange within a
step goes through torch.distributed: NCCL between GPUs, gloo between CPUs. All of them sample from
the same logits, so rank 0 speaks for all. If one dies, the others are ended and every later call
says so.
"""

from __future__ import annotations

import gc
import logging
import os
import weakref
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from paged_stream.config import EngineConfig
from paged_stream.executor.base import Executor
from paged_stream.executor.local import LocalExecutor
from paged_stream.layers.rank_group import RankGroup
from paged_stream.models.fingerprint import Sample, fingerprint
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.sharding import Rank, check_size, kv_heads_of
from paged_stream.scheduler.output import (
    KVOperation,
    ModelOutput,
    ParkedLostError,
    SchedulerOutput,
)
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.system.ray_extra import import_ray, start_ray
from paged_stream.worker.kv_cache import CachePlan

ray = import_ray("util.scheduling_strategies")
logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds to wait for room before saying so


class RankWorker:
    """The process of one rank."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._store: Any = None
        self._executor: LocalExecutor

    def open_store(self) -> tuple[str, int]:
        """Make the place where the ranks meet; returns its address."""
        host = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def start(
        self,
        address: tuple[str, int],
        config: EngineConfig,
        model_config: ModelConfig,
        sink_window: SinkWindow,
    ) -> tuple[CachePlan, list[Sample]]:
        """Meet the others and load this rank's part of the model."""
        store = self._store or dist.TCPStore(*address, is_master=False)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self._rank.index, world_size=self._rank.size
        )
        # The folder of this machine: a hub id may be somewhere else here.
        files = resolve_model(
            config.model,
            cache_dir=config.cache_dir,
            with_tokenizer=config.tokenizer is None,
            merge_lora=config.merge_lora,
        )
        self._executor = LocalExecutor(config, files, model_config, sink_window, RankGroup())
        return self._executor.cache_plan, self._executor.weight_samples

    def execute(self, output: SchedulerOutput) -> ModelOutput | None:
        result = self._executor.execute(output)
        return result if self._rank.index == 0 else None

    def call(self, method: str, *args: Any) -> Any:
        """What `LocalExecutor` has for the whole of a model, for this rank's part. A lost
        sequence is no failure of the rank: its error is returned."""
        try:
            return getattr(self._executor, method)(*args)
        except ParkedLostError as error:
            return error


class RayExecutor(Executor):
    """Runs every step on all ranks.

    Raises:
        ValueError: as `make_executor`.
    """

    # A rank may fail because another has died, before Ray knows that; so long it is asked which.
    notice_seconds = 5.0

    def __init__(
        self,
        config: EngineConfig,
        files: ModelFiles,
        model_config: ModelConfig,
        sink_window: SinkWindow,
    ) -> None:
        size = config.tensor_parallel_size
        check_size(model_config, size)
        self._failure: str | None = None
        self._heads = [kv_heads_of(model_config, Rank(index, size)) for index in range(size)]
        start_ray(ray)
        placement = _place(config)
        self._release = weakref.finalize(self, _remove, placement, os.getpid())
        self._actors = [_start_actor(Rank(index, size), placement, config) for index in range(size)]
        address = ray.get(self._actors[0].open_store.remote())
        plans, samples = zip(
            *self._call_all("start", address, config, model_config, sink_window), strict=True
        )
        self.cache_plan = min(plans, key=lambda plan: plan.num_blocks)
        self.fingerprint = fingerprint(samples)

    def load_adapter(self, folder: Path) -> str:
        raise ValueError(
            "an adapter per request needs the whole model on one device, not tensor_parallel_size="
            f"{len(self._actors)}; merge_lora merges one into the weights"
        )

    def drop_adapter(self, key: str) -> None:
        raise AssertionError("none is loaded")

    def execute(self, output: SchedulerOutput) -> ModelOutput:
        result: ModelOutput = self._call_all("execute", output)[0]
        return result

    def apply(self, operations: Sequence[KVOperation]) -> None:
        self._call_all("call", "apply", operations)

    def read(self, slots: array[int]) -> KVTokens:
        return self._join(self._call_all("call", "read", slots))

    def put_parked(self, key: int, tokens: KVTokens) -> None:
        parts = [
            KVTokens(*(x[:, :, heads.start : heads.stop].contiguous() for x in tokens))
            for heads in self._heads
        ]
        self._call_each("call", [("put_parked", key, part) for part in parts])

    def read_parked(self, key: int) -> KVTokens:
        return self._join(self._call_all("call", "read_parked", key))

    def parked_location(self, key: int) -> Literal["host", "disk"]:
        locations = self._call_all("call", "parked_location", key)
        return "host" if set(locations) == {"host"} else "disk"

    def parked_bytes(self) -> tuple[int, int]:
        return self._sum_pairs("parked_bytes")

    def cache_bytes(self) -> tuple[int, int]:
        return self._sum_pairs("cache_bytes")

    def _sum_pairs(self, method: str) -> tuple[int, int]:
        first, second = zip(*self._call_all("call", method), strict=True)
        return sum(first), sum(second)

    def close(self) -> None:
        self._failure = self._failure or "the engine was closed"
        if self._release.alive and ray.is_initialized():
            for actor in self._actors:
                ray.kill(actor)
        self._release()

    def _join(self, parts: list[KVTokens]) -> KVTokens:
        """Put the ranks' KV heads together; of those that several have, one counts."""
        chosen, stop = [], 0
        for heads, part in zip(self._heads, parts, strict=True):
            if heads.stop > stop:
                chosen.append(part)
                stop = heads.stop
        return KVTokens(*(torch.cat(tensors, dim=2) for tensors in zip(*chosen, strict=True)))

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        """Have all ranks do the same, with what each gives back."""
        return self._call_each(method, [args] * len(self._actors))

    def _call_each(self, method: str, args: list[tuple[Any, ...]]) -> list[Any]:
        if self._failure is not None:
            raise RuntimeError(self._failure)
        calls = [
            getattr(actor, method).remote(*values)
            for actor, values in zip(self._actors, args, strict=True)
        ]
        try:
            results: list[Any] = ray.get(calls)  # the first that fails ends the wait
        except ray.exceptions.RayError as error:
            raise self._fail(calls, error) from error
        for result in results:
            if isinstance(result, ParkedLostError):
                raise result
        return results

    def _fail(self, calls: list[Any], error: Exception) -> Exception:
        """End all ranks, for those that live may wait for one that does not."""
        cause = getattr(error, "cause", None)
        is_clear = isinstance(error, ray.exceptions.RayActorError) or isinstance(cause, ValueError)
        patience = 0.0 if is_clear else self.notice_seconds
        answered, _ = ray.wait(calls, num_returns=len(calls), timeout=patience)
        names = []
        for call in answered:
            try:
                ray.get(call)
            except ray.exceptions.RayActorError:
                names.append(f"rank {calls.index(call)}")
            except ray.exceptions.RayError:
                pass
        who = f"{' and '.join(names)} died" if names else "a rank failed"
        reason = str(error).strip().splitlines()[-1]
        self._failure = f"{who}, so the engine has failed and must be replaced: {reason}"
        self.close()
        return cause if isinstance(cause, ValueError) else RuntimeError(self._failure)


def _place(config: EngineConfig) -> Any:
    """Reserve a GPU, or processors, for each rank, on as few machines as possible."""
    has, size = ray.cluster_resources(), config.tensor_parallel_size
    uses_gpus = config.device == "cuda" or (config.device == "auto" and has.get("GPU", 0) > 0)
    needs = {"GPU": 1.0} if uses_gpus else {"CPU": float(config.num_threads or 1)}
    for kind, amount in needs.items():
        if has.get(kind, 0) < amount * size:
            raise ValueError(
                f"tensor_parallel_size={size} needs {amount * size:g} {kind}s, and the Ray cluster "
                f"has {has.get(kind, 0):g}"
            )
    placement = ray.util.placement_group([needs] * size, strategy="PACK")
    if not placement.wait(_PATIENCE):
        gc.collect()  # engines that nobody uses any more may hold what is wanted
        logger.warning("waiting for room in the Ray cluster: %d times %s", size, needs)
        ray.get(placement.ready())
    return placement


def _remove(placement: Any, pid: int) -> None:
    # Without Ray it is gone, too; in a forked child it is the parent's.
    if ray.is_initialized() and os.getpid() == pid:
        ray.util.remove_placement_group(placement)


def _start_actor(rank: Rank, placement: Any, config: EngineConfig) -> Any:
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
        placement_group=placement, placement_group_bundle_index=rank.index
    )
    needs = placement.bundle_specs[rank.index]
    actor = ray.remote(RankWorker).options(
        num_cpus=needs.get("CPU", 0), num_gpus=needs.get("GPU", 0), scheduling_strategy=strategy
    )
    return actor.remote(rank)
