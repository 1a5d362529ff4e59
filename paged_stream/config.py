"""`EngineConfig`: what the user may set about an engine."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

from paged_stream.scheduler.fields import Bytes, Integer, Number, Switch
from paged_stream.scheduler.hints import explains_settings, unknown_setting
from paged_stream.scheduler.settings import changes_repr, check_fields, setting, takes
from paged_stream.setting_hints import HINTS
from paged_stream.setting_kinds import (
    ATTENTION_BACKEND,
    DTYPE,
    KV_CACHE_DTYPE,
    QUANTIZATION,
    AttentionBackend,
    Device,
    Dtype,
    FilePath,
    Folder,
    KvCacheDtype,
    Model,
    Quantization,
)

if TYPE_CHECKING:
    import torch

Init = TypeVar("Init", bound=Callable[..., None])


@explains_settings(HINTS, example="model='smollm2-135m-instruct'")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EngineConfig:
    """Settings of one engine. Fields keep what the user has set; what follows from several of them
    is a property. Numbers may be numpy's, dtypes torch's, folders `Path` and begin with ``~``.

    Args:
        model: what to load. ``"smollm2-135m-instruct"`` is a small model that comes as a package.
        cache_dir: folder for models that were converted from GGUF files. ``None`` is
            ``paged_stream`` in the folder that the environment variable ``XDG_CACHE_HOME`` names,
            or in ``~/.cache``.
        device: where the model computes. ``"auto"`` is CUDA if there is a device and the op library
            was built for it, else the CPU.
        dtype: of weights and activations; float16 is for CUDA only. ``"auto"`` is bfloat16 if the
            checkpoint is 16-bit or quantised, else float32. ``"half"`` and ``"float"`` are float16
            and float32. Sums are float32 in any case.
        quantization: of weights. ``None`` multiplies by weights in ``dtype``; ``"int8"`` and
            ``"int4"`` round them to blocks of 32 while loading; ``"auto"`` takes the blocks that a
            GGUF file holds (Q4_0, Q4_1, Q8_0) as they are, unless ``dtype`` asks for full
            precision. Activations keep 15 bits. On CUDA weights are in ``dtype``: ``"auto"`` means
            ``None`` there.
        kv_cache_dtype: of the KV cache. ``"auto"`` is the model's; ``"int8"``, with one scale per
            token and head, takes about half the memory of bfloat16, at a small loss; ``"fp8"``
            (e4m3) is for CUDA only.
        block_size: tokens per block of the KV cache.
        num_sink_tokens: ``S``, tokens at the start of each stream that stay visible for ever. 4
            are enough for models trained without a sink token of their own; 1 is for those trained
            with one, which their tokenizer puts first.
        window_size: ``W``, most recent tokens that are visible, the query's own included. ``None``
            is the model's trained length minus the sinks: exact up to there, streaming after. A
            model with learned absolute positions cannot have a window.
        kv_cache_memory_bytes: memory for K and V. ``None`` takes what ``max_num_seqs`` streams can
            use, up to 4 GiB and half of the memory that is free; on CUDA all that
            ``gpu_memory_utilization`` leaves.
        gpu_memory_utilization: share of a CUDA device's memory that weights, activations and cache
            may take together. The largest step is run once to see how much is left.
        attention_backend: what computes attention. ``"xformers"`` is for CUDA only; ``"auto"`` is
            native.
        max_num_seqs: most sequences in one step. ``None`` is 64, or less if
            ``max_num_batched_tokens`` leaves room for fewer.
        max_num_batched_tokens: most tokens in one step, no fewer than ``max_num_seqs``. Larger
            makes prefill cheaper per token, smaller keeps the time between tokens short for others.
        num_decode_steps: steps that a batch which only decodes computes without a look at the
            tokens in between, so that the device never waits. Deltas hold up to so many tokens, and
            what arrives waits for so many steps. ``None`` is 1 on the CPU, 8 on CUDA devices and
            for the whole answers of `LLM` and batches.
        chunk_size: cut prompts at multiples of so many tokens and nowhere else. On a CPU, and
            without prefix caching, the bits of a request's results then depend on nothing else that
            runs. ``None`` cuts prompts as ``max_num_batched_tokens`` allows.
        cuda_graphs: record steps that only decode, on CUDA devices, and play them back, so that the
            host launches a step in one go. Recording takes a few seconds at the start.
        enable_prefix_caching: keep full blocks of K and V after their sequences end, and use them
            for new ones that begin with the same tokens under the same sinks and window.
        parking_memory_bytes: host memory for streams that had to leave the cache; more go to disk.
            ``None`` is a quarter of the memory that is free at the start.
        parking_dir: folder for parked streams that go to disk. ``None`` is the system's for
            temporary files.
        park_after_seconds: move streams out of the cache that were idle for so long, even if nobody
            needs the room. ``None`` waits until somebody does.
        tensor_parallel_size: processes that share the model, each with a part of every layer, of
            the KV cache and of the memory above; one per GPU. More than 1 needs Ray.
        seed: for the requests that bring none.
        num_threads: processor threads while this engine computes. ``None`` takes as many as torch
            would, but no more than the process's affinity mask and its control group's CPU quota
            give it processors. In a pool it is 1 per replica, in a batch a fair share of the
            machine.

    Raises:
        ValueError: names the field, its value and what is allowed.
        TypeError: there is no such field; says what to write instead.
    """

    model: FilePath = field(metadata=takes(Model()))
    cache_dir: FilePath | None = setting(None, Folder(optional=True))
    device: str | torch.device = setting("auto", Device())
    dtype: Dtype | Literal["half", "float"] | torch.dtype = setting("auto", DTYPE)
    quantization: Quantization | None = setting("auto", QUANTIZATION)
    kv_cache_dtype: KvCacheDtype | torch.dtype = setting("auto", KV_CACHE_DTYPE)
    block_size: int = setting(16, Integer(1))
    num_sink_tokens: int = setting(4, Integer(0))
    window_size: int | None = setting(None, Integer(1, optional=True))
    kv_cache_memory_bytes: int | str | None = setting(None, Bytes(1, optional=True))
    gpu_memory_utilization: float = setting(0.9, Number(0.0, 1.0, open_low=True))
    attention_backend: AttentionBackend = setting("auto", ATTENTION_BACKEND)
    max_num_seqs: int | None = setting(None, Integer(1, optional=True))
    max_num_batched_tokens: int = setting(512, Integer(1))
    num_decode_steps: int | None = setting(None, Integer(1, optional=True))
    chunk_size: int | None = setting(None, Integer(1, optional=True))
    cuda_graphs: bool = setting(True, Switch())
    enable_prefix_caching: bool = setting(True, Switch())
    parking_memory_bytes: int | str | None = setting(None, Bytes(0, optional=True))
    parking_dir: FilePath | None = setting(None, Folder(optional=True))
    park_after_seconds: float | None = setting(None, Number(0.0, infinite=True, optional=True))
    tensor_parallel_size: int = setting(1, Integer(1))
    seed: int = setting(0, Integer())
    num_threads: int | None = setting(None, Integer(1, optional=True))

    def __post_init__(self) -> None:
        if isinstance(self.model, EngineConfig):
            raise ValueError(
                f"model must be {Model().allowed}, got an EngineConfig: LLMEngine and "
                "AsyncLLMEngine take one, LLM and RayLLM take its fields, as in "
                f"LLM({self.model.model!r})"
            )
        check_fields(self)
        self._check_budget()

    __repr__ = changes_repr

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> EngineConfig:
        """Make a config of names and values that were read from somewhere.

        Raises:
            ValueError: as the constructor, also for fields that there are not.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(unknown_setting(cls.__name__, name, known, HINTS))
        return cls(**settings)

    @property
    def actual_quantization(self) -> str | None:
        """The quantization that the settings ask for. A ``dtype`` asks for full precision, which
        decides what ``"auto"`` is."""
        if self.quantization == "auto" and self.dtype != "auto":
            return None
        return self.quantization

    @property
    def actual_max_num_seqs(self) -> int:
        """How many sequences run at once: ``max_num_seqs``, or a number that the other settings
        give."""
        if self.max_num_seqs is not None:
            return self.max_num_seqs
        others = self.max_num_batched_tokens - (self.chunk_size or 1)
        return max(1, min(64, others + 1))

    def _check_budget(self) -> None:
        num_seqs = self.actual_max_num_seqs
        if self.max_num_batched_tokens < num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be >= max_num_seqs ({num_seqs}), so that "
                f"every sequence can decode, got {self.max_num_batched_tokens}"
            )
        room = self.max_num_batched_tokens - num_seqs + 1
        if self.chunk_size is not None and self.chunk_size > room:
            raise ValueError(
                f"chunk_size must be <= {room}, so that a chunk fits into "
                f"max_num_batched_tokens beside max_num_seqs - 1 others, got {self.chunk_size}"
            )


class EngineSettings(TypedDict, total=False):
    """The fields of `EngineConfig` but ``model``, for the keyword arguments of constructors."""

    cache_dir: FilePath | None
    device: str | torch.device
    dtype: Dtype | Literal["half", "float"] | torch.dtype
    quantization: Quantization | None
    kv_cache_dtype: KvCacheDtype | torch.dtype
    block_size: int
    num_sink_tokens: int
    window_size: int | None
    kv_cache_memory_bytes: int | str | None
    gpu_memory_utilization: float
    attention_backend: AttentionBackend
    max_num_seqs: int | None
    max_num_batched_tokens: int
    num_decode_steps: int | None
    chunk_size: int | None
    cuda_graphs: bool
    enable_prefix_caching: bool
    parking_memory_bytes: int | str | None
    parking_dir: FilePath | None
    park_after_seconds: float | None
    tensor_parallel_size: int
    seed: int
    num_threads: int | None


def takes_config(init: Init) -> Init:
    """Let a constructor whose first argument is an `EngineConfig` explain how to pass one."""

    @functools.wraps(init)
    def explained(self: object, *args: Any, **settings: Any) -> None:
        config = args[0] if args else settings.get("config")
        own = init.__kwdefaults__ or {}
        loose = {name: value for name, value in settings.items() if name not in {"config", *own}}
        if not isinstance(config, EngineConfig) or loose:
            if isinstance(config, str | os.PathLike):
                loose = {"model": config, **loose}
            fields = ", ".join(f"{name}={value!r}" for name, value in loose.items())
            name = type(self).__name__
            got = (
                "its fields" if isinstance(config, EngineConfig) or config is None else repr(config)
            )
            raise TypeError(
                f"{name} takes an EngineConfig, got {got}; write "
                f"{name}(EngineConfig({fields or 'model=...'}))"
                + (f", or LLM({fields}) for whole answers" if loose and name == "LLMEngine" else "")
            )
        init(self, *args, **settings)

    return cast("Init", explained)


def offline_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `EngineConfig` for whole answers, which nobody reads token by token:
    ``num_decode_steps`` is 8 on every device if it is not given and the backend can. A stop string
    wastes at most the rest of these steps."""
    steps = settings.get("num_decode_steps")
    if steps is None and settings.get("attention_backend") != "xformers":
        steps = 8
    return {**settings, "num_decode_steps": steps}
