"""A paged KV-cache engine for language models on text that never ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paged_stream.async_engine import AsyncLLMEngine as AsyncLLMEngine
    from paged_stream.async_engine import AsyncStream as AsyncStream
    from paged_stream.config import EngineConfig as EngineConfig
    from paged_stream.engine import LLMEngine as LLMEngine
    from paged_stream.lifetime import EngineStoppedError as EngineStoppedError
    from paged_stream.llm import LLM as LLM
    from paged_stream.outputs import CompletionOutput as CompletionOutput
    from paged_stream.outputs import RequestDelta as RequestDelta
    from paged_stream.outputs import RequestOutput as RequestOutput
    from paged_stream.scheduler.sampling_params import SamplingParams as SamplingParams
    from paged_stream.stream import Stream as Stream

__version__ = "0.1.0"

_HOME = {
    "AsyncLLMEngine": "async_engine",
    "AsyncStream": "async_engine",
    "EngineStoppedError": "lifetime",
    "CompletionOutput": "outputs",
    "EngineConfig": "config",
    "LLM": "llm",
    "LLMEngine": "engine",
    "RequestDelta": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "scheduler.sampling_params",
    "Stream": "stream",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import on first use: ``paged_stream.scheduler`` must not pull in torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
