"""What an engine and its streams are like at one moment."""

from __future__ import annotations

from paged_stream.engine.core import EngineCore
from paged_stream.engine.outputs import EngineStats, Location, StreamStats


def stream_stats(core: EngineCore, seq_id: int) -> StreamStats:
    """Describe an open stream."""
    scheduler, executor = core.scheduler, core.executor
    sequence = scheduler.sequences[seq_id]
    computed, window = sequence.num_computed_tokens, sequence.sink_window
    sinks = min(window.num_sink_tokens, computed)
    num_blocks = 0
    location: Location = "none"
    if seq_id in scheduler.kv:
        num_blocks, location = len(scheduler.kv[seq_id].held), "cache"
    elif sequence.is_parked:
        core.flush()
        location = executor.parked_location(seq_id)
    block_bytes, kept = executor.cache_plan.block_bytes, sinks + computed - sequence.first_kept
    return StreamStats(
        num_tokens=sequence.num_tokens,
        num_sink_tokens=window.num_sink_tokens,
        num_pending_tokens=sequence.num_tokens + len(sequence.queued) - computed,
        num_visible_tokens=window.num_visible(computed - 1) if computed else 0,
        num_evicted_tokens=sequence.first_kept - sinks,
        window_start=sequence.first_kept,
        num_blocks=num_blocks,
        kv_bytes=num_blocks * block_bytes
        if location == "cache"
        else kept * block_bytes // scheduler.config.block_size,
        location=location,
        num_prefix_queries=sequence.num_prefix_queries,
        num_prefix_hits=sequence.num_prefix_hits,
        queue_seconds=core.streams[seq_id].queue_seconds,
    )


def engine_stats(core: EngineCore) -> EngineStats:
    """Describe the engine."""
    scheduler, executor, stepper, turns = core.scheduler, core.executor, core.stepper, core.turns
    if not stepper.has_failed:
        core.flush()
    parked_host_bytes, parked_disk_bytes = executor.parked_bytes()
    kv_reserved_bytes, kv_resident_bytes = executor.cache_bytes()
    pool = scheduler.kv.pool
    used = pool.num_blocks - pool.num_free
    return EngineStats(
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting,
        num_streams=len(core.streams),
        num_parked_streams=sum(scheduler.sequences[s].is_parked for s in core.streams),
        num_blocks=pool.num_blocks,
        num_used_blocks=used,
        kv_bytes=used * executor.cache_plan.block_bytes,
        kv_reserved_bytes=kv_reserved_bytes,
        kv_resident_bytes=kv_resident_bytes,
        parked_host_bytes=parked_host_bytes,
        parked_disk_bytes=parked_disk_bytes,
        num_evicted_tokens=core.num_evicted_tokens,
        num_computed_tokens=stepper.num_computed_tokens,
        num_generated_tokens=turns.num_generated_tokens,
        num_prefix_queries=scheduler.num_prefix_queries,
        num_prefix_hits=scheduler.num_prefix_hits,
        num_steps=stepper.num_steps,
        step_seconds=stepper.step_seconds,
        queue_seconds=turns.queue_seconds,
        num_started_turns=turns.num_started,
        num_draft_tokens=scheduler.num_draft_tokens,
        num_accepted_tokens=scheduler.num_accepted_tokens,
        num_preemptions=scheduler.num_preemptions,
        num_failed_turns=turns.num_failed,
        turns=turns.counts.stats(),
    )
