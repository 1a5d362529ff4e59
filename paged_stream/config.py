"""What the user may set about an engine; every field is checked where it enters."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from paged_stream.scheduler.fields import (
    as_bool,
    as_bytes,
    as_choice,
    as_float,
    as_int,
    changes_repr,
    keep,
)
from paged_stream.scheduler.hints import explains_settings, unknown_setting
from paged_stream.setting_hints import HINTS

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
_SAME_DTYPES = {"half": "float16", "float": "float32"}
_NEAR_DTYPES = {
    **dict.fromkeys(("fp32", "f32"), "float32"),
    **dict.fromkeys(("fp16", "f16"), "float16"),
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
}
QUANTIZATIONS = ("auto", "int8", "int4", None)
KV_CACHE_DTYPES = ("auto", "int8", "fp8")
_SAME_KV_CACHE_DTYPES = dict.fromkeys(("fp8_e4m3", "float8_e4m3fn"), "fp8")
ATTENTION_BACKENDS = ("auto", "native", "xformers")

Init = TypeVar("Init", bound=Callable[..., None])


@explains_settings(HINTS, example="model='smollm2-135m-instruct'")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EngineConfig:
    """Settings of one engine. Fields keep what the user has set; what follows from several of them
    is a property. Numbers may be numpy's, dtypes torch's, folders `Path` and begin with ``~``.

    Args:
        model: ``"smollm2-135m-instruct"``, a folder, a ``.gguf`` file or a hub id.
        cache_dir: folder for models that were converted from GGUF files; ``None`` is
            ``paged_stream`` in the folder that the environment variable ``XDG_CACHE_HOME`` names,
            or in ``~/.cache``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``: CUDA if there is a device and
            the op library was built for it.
        dtype: of weights and activations: ``"float32"``, ``"bfloat16"``, on CUDA ``"float16"``, or
            ``"auto"``, which is bfloat16 if the checkpoint is 16-bit or quantised. ``"half"`` and
            ``"float"`` are float16 and float32. Sums are float32 in any case.
        quantization: ``None`` multiplies by weights in ``dtype``; ``"int8"`` and ``"int4"`` round
            them to blocks of 32 while loading; ``"auto"`` takes the blocks that a GGUF file holds
            (Q4_0, Q4_1, Q8_0) as they are, unless ``dtype`` asks for full precision. Activations
            keep 15 bits. On CUDA weights are in ``dtype``: ``"auto"`` means ``None`` there.
        kv_cache_dtype: of the KV cache: ``"auto"``, the model's, or ``"int8"``, with one scale per
            token and head: about half the memory of bfloat16, at a small loss. On CUDA also
            ``"fp8"`` (e4m3).
        block_size: tokens per KV cache block.
        num_sink_tokens: ``S``, tokens at the start of each stream that stay visible for ever. 4
            is enough for models trained without a sink token of their own; 1 for those trained
            with one, which their tokenizer puts first.
        window_size: ``W``, most recent tokens that are visible. ``None`` is the model's trained
            length minus the sinks: exact up to there, streaming after. A model with learned
            absolute positions cannot have a window.
        kv_cache_memory_bytes: memory for K and V, in bytes or as text: ``"4GiB"``, ``"512MiB"``,
            ``"4GB"``. ``None`` takes what ``max_num_seqs`` streams
            can use, up to 4 GiB and half of the memory that is free; on CUDA all that
            ``gpu_memory_utilization`` leaves.
        gpu_memory_utilization: share of a CUDA device's memory that weights, activations and cache
            may take together; the largest step is run once to see how much is left.
        attention_backend: ``"native"``, or on CUDA ``"xformers"``; ``"auto"`` is native.
        max_num_seqs: sequences in one step. ``None`` is 64, or ``max_num_batched_tokens`` if
            that is less.
        max_num_batched_tokens: tokens in one step, no fewer than ``max_num_seqs``. Larger makes
            prefill cheaper per token, smaller keeps the time between tokens short for others.
        num_decode_steps: steps that a batch which only decodes computes without a look at the
            tokens in between, so that the device never waits: deltas hold up to so many tokens, and
            what arrives waits for so many steps. ``None`` is 1 on the CPU and 8 on CUDA devices.
        chunk_size: cut prompts at multiples of so many tokens and nowhere else. On a CPU, and
            without prefix caching, the bits of a request's results then depend on nothing else that
            runs. ``None`` cuts prompts as ``max_num_batched_tokens`` allows.
        cuda_graphs: record steps that only decode, on CUDA devices, and play them back, so that the
            host launches a step in one go. Recording takes a few seconds at the start.
        enable_prefix_caching: keep full blocks of K and V after their sequences end, and use them
            for new ones that begin with the same tokens under the same sinks and window.
        parking_memory_bytes: host memory for streams that had to leave the cache; more go to
            disk. In bytes or as text; ``None`` is a quarter of the memory that is free at the
            start.
        parking_dir: where those on disk go; ``None`` is the system's folder for temporary files.
        park_after_seconds: move streams out of the cache that were idle for so long, even if
            nobody needs the room; ``None`` waits until somebody does.
        tensor_parallel_size: processes that share the model, each with a part of every layer, of
            the KV cache and of the memory above; one per GPU. More than 1 needs Ray.
        seed: for the requests that bring none.
        num_threads: processor threads while this engine computes; ``None`` takes as many as torch
            would, but no more than the process's affinity mask and its control group's CPU quota
            give it processors.

    Raises:
        ValueError: names the field, its value and what is allowed.
        TypeError: there is no such field; says what to write instead.
    """

    model: str | os.PathLike[str]
    cache_dir: str | os.PathLike[str] | None = None
    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    quantization: str | None = "auto"
    kv_cache_dtype: str | torch.dtype = "auto"
    block_size: int = 16
    num_sink_tokens: int = 4
    window_size: int | None = None
    kv_cache_memory_bytes: int | str | None = None
    gpu_memory_utilization: float = 0.9
    attention_backend: str = "auto"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int = 512
    num_decode_steps: int | None = None
    chunk_size: int | None = None
    cuda_graphs: bool = True
    enable_prefix_caching: bool = True
    parking_memory_bytes: int | str | None = None
    parking_dir: str | os.PathLike[str] | None = None
    park_after_seconds: float | None = None
    tensor_parallel_size: int = 1
    seed: int = 0
    num_threads: int | None = None

    def __post_init__(self) -> None:
        self._check_model()
        keep(self, "cache_dir", _as_folder)
        keep(self, "device", lambda name, value: str(value))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(self.device)):
            raise ValueError(
                f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}"
            )
        keep(self, "dtype", as_choice, DTYPES, same=_SAME_DTYPES, near=_NEAR_DTYPES)
        keep(self, "quantization", as_choice, QUANTIZATIONS, same={"none": None})
        keep(self, "kv_cache_dtype", as_choice, KV_CACHE_DTYPES, same=_SAME_KV_CACHE_DTYPES)
        keep(self, "attention_backend", as_choice, ATTENTION_BACKENDS)
        keep(self, "gpu_memory_utilization", as_float, 0.0, 1.0, open_low=True)
        keep(self, "block_size", as_int, 1)
        keep(self, "num_sink_tokens", as_int, 0)
        keep(self, "window_size", as_int, 1, optional=True)
        keep(self, "kv_cache_memory_bytes", as_bytes, 1, optional=True)
        keep(self, "max_num_batched_tokens", as_int, 1)
        keep(self, "max_num_seqs", as_int, 1, optional=True)
        keep(self, "chunk_size", as_int, 1, optional=True)
        keep(self, "num_decode_steps", as_int, 1, optional=True)
        self._check_budget()
        keep(self, "cuda_graphs", as_bool)
        keep(self, "enable_prefix_caching", as_bool)
        keep(self, "parking_memory_bytes", as_bytes, 0, optional=True)
        keep(self, "parking_dir", _as_folder)
        keep(self, "park_after_seconds", as_float, 0.0, infinite=True, optional=True)
        keep(self, "tensor_parallel_size", as_int, 1)
        keep(self, "seed", as_int)
        keep(self, "num_threads", as_int, 1, optional=True)

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
        """``quantization``, with ``"auto"`` decided as far as the settings can: a ``dtype`` asks
        for full precision."""
        if self.quantization == "auto" and self.dtype != "auto":
            return None
        return self.quantization

    @property
    def actual_max_num_seqs(self) -> int:
        """``max_num_seqs``, or what it is if it was not set."""
        if self.max_num_seqs is not None:
            return self.max_num_seqs
        others = self.max_num_batched_tokens - (self.chunk_size or 1)
        return max(1, min(64, others + 1))

    def _check_model(self) -> None:
        if isinstance(self.model, EngineConfig):
            raise ValueError(
                "model must be a name, a folder, a .gguf file or a hub id, got an EngineConfig: "
                "LLMEngine and AsyncLLMEngine take one, LLM and RayLLM take its fields, as in "
                f"LLM({self.model.model!r})"
            )
        if not isinstance(self.model, str | os.PathLike) or not str(self.model):
            raise ValueError(
                f"model must be a name, a folder, a .gguf file or a hub id, got {self.model!r}"
            )
        keep(self, "model", lambda name, value: os.path.expanduser(os.fspath(value)))

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


def _as_folder(name: str, value: Any) -> str | None:
    """A path of a folder, which need not exist yet; ``~`` is the user's home."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{name} must be a folder, got {value!r}")
    folder = os.path.expanduser(os.fspath(value))
    if Path(folder).is_file():
        raise ValueError(f"{name} must be a folder, got {value!r}, which is a file")
    return folder


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
