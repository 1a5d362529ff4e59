"""Decode steps that are recorded once for each of a few batch sizes and played back.

A recorded step reads and writes tensors at fixed addresses, so a batch is copied into such ones
first, with rows added up to the next size of the ladder. An added row is a sequence of one token
whose only key is in a block that nobody else has; it writes to slot -1 and has no tokens left to
gain, so that it changes nothing and its result goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from paged_stream.ops import BatchTensors, SamplingTensors
from paged_stream.worker.decode_loop import DecodeBatch, join_tensors, split_tensors
from paged_stream.worker.staging import pack, unpack

Play = Callable[[], None]


class Recorder(Protocol):
    """Turns work into something that does it again, on the same tensors."""

    def record(self, work: Callable[[], None]) -> Play: ...


class CudaRecorder:
    """Records CUDA graphs of the current device, which share their memory: one of them runs at a
    time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # One for all, because libraries keep a workspace for each stream; and of this device, while
        # the one that torch would choose belongs to whichever device recorded first.
        self._stream = torch.cuda.Stream()

    def record(self, work: Callable[[], None]) -> Play:
        # Once outside: libraries load kernels and workspaces when they are first called.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with their devices meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        return graph.replay


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLimits:
    """What the recorded steps have room for; what does not fit runs unrecorded.

    Args:
        num_rows: sequences.
        table_width: columns of the block table.
        num_steps: of one launch.
        padding_block: a block of the cache that belongs to no sequence.
        block_size: tokens per block.
        num_stops: stop tokens of a sequence.
    """

    num_rows: int
    table_width: int
    num_steps: int
    padding_block: int
    block_size: int
    num_stops: int = 8

    def take(self, batch: DecodeBatch) -> bool:
        rows, width = batch.input.block_table.shape
        return (
            rows <= self.num_rows
            and width <= self.table_width
            and batch.generated.shape[1] <= self.num_steps
            and batch.stop_token_ids.shape[1] <= self.num_stops
            and batch.adapters is None
        )


def ladder(num_rows: int) -> list[int]:
    """Batch sizes to record: a batch is filled up by no more than 7 rows, or to twice its size."""
    sizes = [size for size in (1, 2, 4, *range(8, num_rows, 8)) if size < num_rows]
    return [*sizes, num_rows]


class DecodeGraphs:
    """Recorded steps of one model and one cache.

    Args:
        step: computes one step of a batch in place, with no look at what it computes.
        device: where its batches are.
    """

    def __init__(
        self,
        limits: GraphLimits,
        step: Callable[[DecodeBatch], None],
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self.limits = limits
        self._graphs: dict[int, tuple[torch.Tensor, DecodeBatch, Play]] = {}
        for size in reversed(ladder(limits.num_rows)):  # the largest one's memory does for all
            padding = padding_rows(size, limits)
            tensors = split_tensors(padding)
            buffer = pack(tensors).to(device)
            batch = join_tensors(padding, unpack(buffer, tensors))
            play = recorder.record(partial(step, batch))
            self._graphs[size] = buffer, batch, play

    def load(self, batch: DecodeBatch) -> DecodeBatch:
        """Copy a batch on the host, which the limits take, to where a recorded step finds it."""
        rows = len(batch.num_left)
        size = min(size for size in self._graphs if size >= rows)
        buffer, recorded, _ = self._graphs[size]
        filled = split_tensors(padding_rows(size, self.limits))
        for target, source in zip(filled, split_tensors(batch), strict=True):
            target[tuple(slice(length) for length in source.shape)] = source
        buffer.copy_(pack(filled, pin_memory=buffer.is_cuda), non_blocking=True)
        return recorded

    def holds(self, batch: DecodeBatch) -> bool:
        """Whether this is a batch that `load` gave."""
        return any(batch is recorded for _, recorded, _ in self._graphs.values())

    def play(self, batch: DecodeBatch, num_steps: int) -> None:
        """Start steps of a loaded batch."""
        play = self._graphs[len(batch.num_left)][2]
        for _ in range(num_steps):
            play()


def padding_rows(count: int, limits: GraphLimits) -> DecodeBatch:
    """A batch on the host of rows that change nothing."""

    def full(value: float, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.full((count, *shape), value, dtype=dtype)

    zeros, ones = full(0, torch.int64), full(1, torch.int32)
    table = full(-1, torch.int32, limits.table_width)
    table[:, 0] = limits.padding_block
    tensors = BatchTensors(
        token_ids=zeros,
        positions=zeros,
        sink_positions=zeros,
        slot_mapping=zeros - 1,
        block_table=table,
        query_start_loc=torch.arange(count + 1, dtype=torch.int32),
        seq_lens=zeros + 1,
        num_sink_tokens=ones - 1,
        window_size=ones,
        window_floor=zeros,
        ring_blocks=ones,
    )
    batch = DecodeBatch(
        input=tensors,
        sampling=SamplingTensors(
            temperature=full(0, torch.float64),
            min_p=full(0, torch.float64),
            top_k=zeros,
            top_p=full(1, torch.float64),
            seeds=zeros,
        ),
        stop_token_ids=full(-1, torch.int64, limits.num_stops),
        num_left=zeros,
        generated=full(-1, torch.int64, limits.num_steps),
        num_generated=zeros,
        block_size=limits.block_size,
    )
    # Tensors of their own: each is filled with its own rows.
    return join_tensors(batch, [tensor.clone() for tensor in split_tensors(batch)])
