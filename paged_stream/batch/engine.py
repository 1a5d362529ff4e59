"""The engine of one replica of a batch. Only this module knows which class it is."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paged_stream.batch.row_task import WRITING_TASKS, RowTask
from paged_stream.config import EngineConfig
from paged_stream.engine.async_engine import AsyncLLMEngine

if TYPE_CHECKING:
    from paged_stream.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEngine:
    """An engine, and what it knows of its model.

    Args:
        model: its name.
        max_num_seqs: sequences in one of its steps.
        shares_prefixes: whether prompts that begin in the same way are computed once so far; those
            that are scored never are.
        weights: a fingerprint of its weights, and of its adapters.
    """

    engine: AsyncLLMEngine
    model: str
    tokenizer: Tokenizer | None
    max_num_seqs: int
    shares_prefixes: bool
    weights: str


def start_engine(config: EngineConfig, task: RowTask) -> BatchEngine:
    """Load a model, and see that it can do a task.

    Raises:
        ValueError: as `AsyncLLMEngine`; the cache does not hold one long document; or the model has
            no tokenizer.
    """
    engine = AsyncLLMEngine(config)
    try:
        engine.intake.prompts.check_params(task.sampling_params)
        if engine.tokenizer is None and task.task in WRITING_TASKS:
            raise ValueError(f"task={task.task!r} needs a tokenizer, {config.model} has none")
        # In a thread of its own: whoever calls may be within an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _open_stream(engine)).result()
    except BaseException:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, engine.close()).result()
        raise
    return BatchEngine(
        engine=engine,
        model=str(config.model),
        tokenizer=engine.tokenizer,
        max_num_seqs=config.actual_max_num_seqs,
        shares_prefixes=config.enable_prefix_caching and task.task != "score",
        weights="-".join([engine.intake.fingerprint, *engine.intake.adapter_keys()]),
    )


async def _open_stream(engine: AsyncLLMEngine) -> None:
    """Raises ValueError if the cache is too small for a stream, as a long document is one."""
    async with await engine.open_stream():
        pass
