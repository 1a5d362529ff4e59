"""The ranks of a model as threads of this process: what they exchange goes through a barrier, the
rest is as in production. Starting processes takes seconds, so most checks use these."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from paged_stream.executor.local import LocalExecutor
from paged_stream.executor.ray import RankWorker, RayExecutor
from paged_stream.layers.rank_group import RankGroup
from paged_stream.models.fingerprint import fingerprint
from paged_stream.models.sharding import Rank, check_size, kv_heads_of


class ThreadGroup(RankGroup):
    def __init__(self, rank: int, tensors: list, barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(tensors)
        self._tensors, self._barrier = tensors, barrier

    def _exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._tensors[self.rank] = tensor.clone()
        self._barrier.wait()
        tensors = list(self._tensors)
        self._barrier.wait()
        return tensors

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self._exchange(tensor)).sum(0))

    def join_columns(self, tensor: torch.Tensor, widths: list[int]) -> torch.Tensor:
        tensors = self._exchange(tensor)
        assert [t.shape[1] for t in tensors] == widths
        return torch.cat(tensors, dim=1)


class ThreadExecutor(RayExecutor):
    def __init__(self, config, files, model_config, sink_window) -> None:
        size = config.tensor_parallel_size
        check_size(model_config, size)
        ranks = [Rank(index, size) for index in range(size)]
        self._heads = [kv_heads_of(model_config, rank) for rank in ranks]
        tensors, self._barrier = [None] * size, threading.Barrier(size)
        self._pool = ThreadPoolExecutor(size)
        self._actors = []
        for rank in ranks:
            group = ThreadGroup(rank.index, tensors, self._barrier) if size > 1 else None
            worker = RankWorker(rank)
            worker._executor = LocalExecutor(config, files, model_config, sink_window, group)
            self._actors.append(worker)
        executors = [worker._executor for worker in self._actors]
        self.cache_plan = executors[0].cache_plan
        self.fingerprint = fingerprint([executor.weight_samples for executor in executors])

    def _call_each(self, method, args):
        def call(actor, values):
            try:
                return getattr(actor, method)(*values)
            except BaseException:
                self._barrier.abort()  # the others must not wait for this rank
                raise

        pairs = zip(self._actors, args, strict=True)
        futures = [self._pool.submit(call, *pair) for pair in pairs]
        if errors := [error for future in futures if (error := future.exception())]:
            self._barrier.reset()
            raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        return [future.result() for future in futures]

    def close(self) -> None:
        self._pool.shutdown()
