"""A paged KV-cache engine for language models on text that never ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paged_stream.version import __version__ as __version__

if TYPE_CHECKING:
    from paged_stream.config import EngineConfig as EngineConfig
    from paged_stream.engine.api import AsyncEngineApi as AsyncEngineApi
    from paged_stream.engine.api import AsyncStreamApi as AsyncStreamApi
    from paged_stream.engine.api import EngineApi as EngineApi
    from paged_stream.engine.api import StreamApi as StreamApi
    from paged_stream.engine.async_engine import AsyncLLMEngine as AsyncLLMEngine
    from paged_stream.engine.async_stream import AsyncStream as AsyncStream
    from paged_stream.engine.lifetime import EngineStoppedError as EngineStoppedError
    from paged_stream.engine.lifetime import StreamLostError as StreamLostError
    from paged_stream.engine.llm import LLM as LLM
    from paged_stream.engine.llm_engine import LLMEngine as LLMEngine
    from paged_stream.engine.lora_request import LoRARequest as LoRARequest
    from paged_stream.engine.outputs import CompletionOutput as CompletionOutput
    from paged_stream.engine.outputs import EmbeddingOutput as EmbeddingOutput
    from paged_stream.engine.outputs import EmbeddingRequestOutput as EmbeddingRequestOutput
    from paged_stream.engine.outputs import EngineStats as EngineStats
    from paged_stream.engine.outputs import Histogram as Histogram
    from paged_stream.engine.outputs import RequestDelta as RequestDelta
    from paged_stream.engine.outputs import RequestMetrics as RequestMetrics
    from paged_stream.engine.outputs import RequestOutput as RequestOutput
    from paged_stream.engine.outputs import StreamStats as StreamStats
    from paged_stream.engine.outputs import TokenLogprob as TokenLogprob
    from paged_stream.engine.outputs import TurnStats as TurnStats
    from paged_stream.engine.outputs import VisibleRun as VisibleRun
    from paged_stream.engine.outputs import VisibleText as VisibleText
    from paged_stream.engine.stream import Stream as Stream
    from paged_stream.pool.async_ray_llm import AsyncRayLLM as AsyncRayLLM
    from paged_stream.pool.errors import PoolError as PoolError
    from paged_stream.pool.ray_llm import RayLLM as RayLLM
    from paged_stream.pool.stats import PoolStats as PoolStats
    from paged_stream.pool.stats import ReplicaStats as ReplicaStats
    from paged_stream.scheduler.sampling_params import SamplingParams as SamplingParams
    from paged_stream.scheduler.structured_outputs import (
        StructuredOutputsParams as StructuredOutputsParams,
    )
    from paged_stream.serve.collector import EngineCollector as EngineCollector
    from paged_stream.serve.ray_app import build_app as build_app
    from paged_stream.text.inputs import Prompt as Prompt
    from paged_stream.text.inputs import TextPrompt as TextPrompt
    from paged_stream.text.inputs import TokensPrompt as TokensPrompt

_HOME = {
    "AsyncEngineApi": "engine.api",
    "AsyncLLMEngine": "engine.async_engine",
    "AsyncRayLLM": "pool.async_ray_llm",
    "AsyncStream": "engine.async_stream",
    "AsyncStreamApi": "engine.api",
    "CompletionOutput": "engine.outputs",
    "EmbeddingOutput": "engine.outputs",
    "EmbeddingRequestOutput": "engine.outputs",
    "EngineApi": "engine.api",
    "EngineCollector": "serve.collector",
    "EngineConfig": "config",
    "EngineStats": "engine.outputs",
    "EngineStoppedError": "engine.lifetime",
    "Histogram": "engine.outputs",
    "LLM": "engine.llm",
    "LLMEngine": "engine.llm_engine",
    "PoolError": "pool.errors",
    "PoolStats": "pool.stats",
    "Prompt": "text.inputs",
    "RayLLM": "pool.ray_llm",
    "ReplicaStats": "pool.stats",
    "RequestDelta": "engine.outputs",
    "RequestMetrics": "engine.outputs",
    "RequestOutput": "engine.outputs",
    "LoRARequest": "engine.lora_request",
    "SamplingParams": "scheduler.sampling_params",
    "Stream": "engine.stream",
    "StreamApi": "engine.api",
    "StreamLostError": "engine.lifetime",
    "StreamStats": "engine.outputs",
    "StructuredOutputsParams": "scheduler.structured_outputs",
    "TextPrompt": "text.inputs",
    "TokenLogprob": "engine.outputs",
    "TokensPrompt": "text.inputs",
    "TurnStats": "engine.outputs",
    "VisibleRun": "engine.outputs",
    "VisibleText": "engine.outputs",
    "build_app": "serve.ray_app",
}
__all__ = ["__version__", *sorted(_HOME)]

if not TYPE_CHECKING:  # which knows the names above, and finds a typo

    def __getattr__(name: str) -> object:
        """Import on first use: ``paged_stream.scheduler`` must not pull in torch, nor anything
        Ray."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
