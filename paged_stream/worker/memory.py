"""How large a KV cache may be: what the user sets, what a CPU has, or what the largest step leaves
of a CUDA device."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from paged_stream.config import EngineConfig
from paged_stream.models.model_config import ModelConfig
from paged_stream.scheduler.output import ScheduledSequence, SchedulerOutput
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sink_window import SinkWindow, cdiv
from paged_stream.worker.kv_cache import CachePlan

_DEFAULT_KV_BYTES = 4 << 30

# As a container sees them, of version 2 and 1: folder, limit, usage, prefix of sums over children.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes of a CUDA device.

    Args:
        total: that it has.
        in_use: taken between steps, by the weights and by whoever else uses the device.
        weights: of these, the model's.
        activations: that the largest step takes beside.
    """

    total: int
    in_use: int
    weights: int
    activations: int

    def left_for_cache(self, utilization: float) -> int:
        return int(self.total * utilization) - self.in_use - self.activations

    def __str__(self) -> str:
        return (
            f"of {_gib(self.total)}, {_gib(self.weights)} hold weights, "
            f"{_gib(self.in_use - self.weights)} are taken otherwise, and the largest step needs "
            f"{_gib(self.activations)}"
        )


def memory_budget(config: EngineConfig, device: torch.device) -> int | None:
    """Bytes that K and V may take, ``None`` if only a run of the model can tell.

    Raises:
        ValueError: more is asked for than the device has.
    """
    budget = config.kv_cache_memory_bytes
    assert not isinstance(budget, str)  # EngineConfig has read it
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if budget is None:
            return min(_DEFAULT_KV_BYTES, available_memory() // 2)
    if budget is not None and budget > total:
        owner = "this machine's" if device.type == "cpu" else f"{device}'s"
        raise ValueError(
            f"kv_cache_memory_bytes must be at most {owner} memory ({total}), got {budget}"
        )
    return budget


def plan_cache(
    config: EngineConfig,
    model_config: ModelConfig,
    kv_dtype: torch.dtype,
    sink_window: SinkWindow,
    budget: int,
    use: MemoryUse | None = None,
) -> CachePlan:
    """Decide how many blocks to have in ``budget`` bytes, which are what ``use`` leaves if given.

    Args:
        model_config: of one rank.
        budget: of one rank if ``use`` is given, else of all together.

    Raises:
        ValueError: the memory does not hold one stream; names the least that would.
    """
    rank_bytes = model_config.kv_bytes_per_token(kv_dtype) * config.block_size
    all_bytes = rank_bytes * config.tensor_parallel_size
    block_bytes = all_bytes if use is None else rank_bytes
    least = blocks_per_stream(config, model_config, sink_window, chunk=1)
    most = blocks_per_stream(config, model_config, sink_window, chunk=config.max_num_batched_tokens)
    if config.kv_cache_memory_bytes is None and use is None:
        budget = min(budget, most * config.actual_max_num_seqs * block_bytes)
    num_blocks = budget // block_bytes
    if num_blocks < least:
        window = "" if model_config.learned_positions else " or lower window_size"
        needs = (
            f"num_sink_tokens={sink_window.num_sink_tokens} and "
            f"window_size={sink_window.window_size} need {least * block_bytes} bytes"
        )
        if use is None:
            raise ValueError(
                f"kv_cache_memory_bytes={budget} is too little for one stream: {needs}; raise it"
                f"{window}"
            )
        raise ValueError(
            f"gpu_memory_utilization={config.gpu_memory_utilization} leaves {budget} bytes for the "
            f"KV cache, too little for one stream: {needs}. {use}. Raise it, lower "
            f"max_num_batched_tokens{window}"
        )
    return CachePlan(num_blocks=num_blocks, block_bytes=all_bytes)


def blocks_per_stream(
    config: EngineConfig, model_config: ModelConfig, sink_window: SinkWindow, *, chunk: int
) -> int:
    """Most blocks that a stream holds while ``chunk`` of its tokens are computed at a time."""
    if sink_window.window_size is None:
        return cdiv(model_config.max_position_embeddings, config.block_size)
    sinks = sink_window.num_sink_blocks(config.block_size)
    return sinks + sink_window.ring_blocks(chunk, config.block_size)


def largest_step(
    config: EngineConfig, model_config: ModelConfig, sink_window: SinkWindow, num_tokens: int
) -> SchedulerOutput:
    """A step of ``num_tokens`` over ``max_num_seqs`` sequences that all sample. All K and V go to
    block 0: what it computes means nothing."""
    count = config.actual_max_num_seqs
    params = SamplingParams(temperature=1.0, top_p=0.9, top_k=50, min_p=0.01)
    chunks = [num_tokens // count + (i < num_tokens % count) for i in range(count)]
    longest = model_config.max_position_embeddings if sink_window.window_size is None else None
    sequences = []
    for seq_id, chunk in enumerate(chunks):
        chunk = chunk if longest is None else min(chunk, longest)
        blocks = blocks_per_stream(config, model_config, sink_window, chunk=chunk)
        sequences.append(
            ScheduledSequence(
                seq_id=seq_id,
                token_ids=array("i", bytes(4 * chunk)),
                num_computed_tokens=0,
                num_prompt_tokens=chunk,
                next_token_id=-1,
                block_row=array("i", bytes(4 * blocks)),
                ring_blocks=blocks - _sink_blocks(sink_window, config.block_size),
                sink_window=sink_window,
                sampling_params=params,
                stop_token_ids=(),
                seed=0,
                max_new_tokens=1,
                history=array("i"),
            )
        )
    return SchedulerOutput(tuple(sequences))


def _sink_blocks(sink_window: SinkWindow, block_size: int) -> int:
    return 0 if sink_window.window_size is None else sink_window.num_sink_blocks(block_size)


def measure(device: torch.device, run: Callable[[], object]) -> MemoryUse:
    """Run the largest step of a model that is loaded, on a CUDA device."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    weights = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    # What stays allocated, such as the workspaces of cuBLAS, is in use from now on.
    peak, stays = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return MemoryUse(
        total=total, in_use=total - free, weights=weights, activations=max(0, peak - stays)
    )


@contextmanager
def explain_shortage(device: torch.device, doing: str, advice: str) -> Iterator[None]:
    """Let an allocation that fails say how much there was of what."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise torch.OutOfMemoryError(
            f"{device} ran out of memory while {doing}: {_gib(free)} of {_gib(total)} are free, "
            f"this process holds {_gib(torch.cuda.memory_allocated(device))} in tensors, at most "
            f"{_gib(torch.cuda.max_memory_allocated(device))}; {advice}"
        ) from error


def available_memory() -> int:
    """Bytes of host memory that are free, for the machine and for the container."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    rooms = [_room_in_container(*group) for group in _CGROUPS]
    return min([free, *(room for room in rooms if room is not None)])


def _room_in_container(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    """Bytes below a control group's limit, pages of files that can go not counted; None if there
    is no limit."""
    try:
        used = int((folder / usage).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in map(str.split, lines)}
        files = stat[f"{prefix}inactive_file"] + stat[f"{prefix}active_file"]
        return max(0, int((folder / limit).read_text()) - used + files)
    except (OSError, ValueError, KeyError):  # "max" is no number
        return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
