"""A paged KV-cache engine for language models on text that never ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paged_stream.version import __version__ as __version__

if TYPE_CHECKING:
    from paged_stream.config import EngineConfig as EngineConfig
    from paged_stream.engine.async_engine import AsyncLLMEngine as AsyncLLMEngine
    from paged_stream.engine.async_stream import AsyncStream as AsyncStream
    from paged_stream.engine.lifetime import EngineStoppedError as EngineStoppedError
    from paged_stream.engine.llm import LLM as LLM
    from paged_stream.engine.llm_engine import LLMEngine as LLMEngine
    from paged_stream.engine.outputs import CompletionOutput as CompletionOutput
    from paged_stream.engine.outputs import RequestDelta as RequestDelta
    from paged_stream.engine.outputs import RequestOutput as RequestOutput
    from paged_stream.engine.stream import Stream as Stream
    from paged_stream.pool.async_ray_llm import AsyncRayLLM as AsyncRayLLM
    from paged_stream.pool.ray_llm import RayLLM as RayLLM
    from paged_stream.scheduler.sampling_params import SamplingParams as SamplingParams
    from paged_stream.serve.ray_app import build_app as build_app

_HOME = {
    "AsyncLLMEngine": "engine.async_engine",
    "AsyncStream": "engine.async_stream",
    "AsyncRayLLM": "pool.async_ray_llm",
    "EngineStoppedError": "engine.lifetime",
    "CompletionOutput": "engine.outputs",
    "EngineConfig": "config",
    "LLM": "engine.llm",
    "LLMEngine": "engine.llm_engine",
    "RayLLM": "pool.ray_llm",
    "RequestDelta": "engine.outputs",
    "RequestOutput": "engine.outputs",
    "SamplingParams": "scheduler.sampling_params",
    "Stream": "engine.stream",
    "build_app": "serve.ray_app",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import on first use: ``paged_stream.scheduler`` must not pull in torch, nor anything Ray."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
