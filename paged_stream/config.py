"""What the user may set about an engine; every field is checked where it enters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("auto", "int8", "int4", None)
KV_CACHE_DTYPES = ("auto", "int8", "fp8")
ATTENTION_BACKENDS = ("auto", "native", "xformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine.

    Args:
        model: ``"smollm2-135m-instruct"``, a folder, a ``.gguf`` file or a hub id.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``: CUDA if there is a device and
            the op library was built for it.
        dtype: of weights and activations: ``"float32"``, ``"bfloat16"``, on CUDA ``"float16"``, or
            ``"auto"``, which is bfloat16 if the checkpoint is 16-bit or quantised. Sums are float32
            in any case.
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
        kv_cache_memory_bytes: memory for K and V. ``None`` takes what ``max_num_seqs`` streams
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
            disk. ``None`` is a quarter of the memory that is free at the start.
        parking_dir: where those on disk go; ``None`` is the system's folder for temporary files.
        park_after_seconds: move streams out of the cache that were idle for so long, even if
            nobody needs the room; ``None`` waits until somebody does.
        tensor_parallel_size: processes that share the model, each with a part of every layer, of
            the KV cache and of the memory above; one per GPU. More than 1 needs Ray.
        seed: for the requests that bring none.
        num_threads: processor threads; ``None`` leaves it to torch.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = "auto"
    kv_cache_dtype: str = "auto"
    block_size: int = 16
    num_sink_tokens: int = 4
    window_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    attention_backend: str = "auto"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int = 512
    num_decode_steps: int | None = None
    chunk_size: int | None = None
    cuda_graphs: bool = True
    enable_prefix_caching: bool = True
    parking_memory_bytes: int | None = None
    parking_dir: str | Path | None = None
    park_after_seconds: float | None = None
    tensor_parallel_size: int = 1
    seed: int = 0
    num_threads: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(
                f"model must be a name, a folder, a .gguf file or a hub id, got {self.model!r}"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(self.device)):
            raise ValueError(
                f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(
                f"quantization must be 'auto', 'int8', 'int4' or None, got {self.quantization!r}"
            )
        if self.quantization == "auto" and self.dtype != "auto":
            object.__setattr__(self, "quantization", None)
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise ValueError(
                f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got "
                f"{self.kv_cache_dtype!r}"
            )
        if self.attention_backend not in ATTENTION_BACKENDS:
            raise ValueError(
                f"attention_backend must be one of {', '.join(ATTENTION_BACKENDS)}, got "
                f"{self.attention_backend!r}"
            )
        share = self.gpu_memory_utilization
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1], got {share!r}")
        self._check_int("block_size", 1)
        self._check_int("num_sink_tokens", 0)
        self._check_int("window_size", 1, optional=True)
        self._check_int("kv_cache_memory_bytes", 1, optional=True)
        self._check_int("max_num_batched_tokens", 1)
        self._check_int("max_num_seqs", 1, optional=True)
        self._check_int("chunk_size", 1, optional=True)
        if self.max_num_seqs is None:
            others = self.max_num_batched_tokens - (self.chunk_size or 1)
            object.__setattr__(self, "max_num_seqs", max(1, min(64, others + 1)))
        elif self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be >= max_num_seqs ({self.max_num_seqs}), so that "
                f"every sequence can decode, got {self.max_num_batched_tokens}"
            )
        self._check_int("num_decode_steps", 1, optional=True)
        self._check_chunk_size()
        for name in ("cuda_graphs", "enable_prefix_caching"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be a bool, got {getattr(self, name)!r}")
        self._check_int("parking_memory_bytes", 0, optional=True)
        self._check_parking()
        self._check_int("tensor_parallel_size", 1)
        self._check_int("seed", None)
        self._check_int("num_threads", 1, optional=True)

    def _check_chunk_size(self) -> None:
        assert self.max_num_seqs is not None
        room = self.max_num_batched_tokens - self.max_num_seqs + 1
        if self.chunk_size is not None and self.chunk_size > room:
            raise ValueError(
                f"chunk_size must be <= {room}, so that a chunk fits into "
                f"max_num_batched_tokens beside max_num_seqs - 1 others, got {self.chunk_size}"
            )

    def _check_parking(self) -> None:
        folder, seconds = self.parking_dir, self.park_after_seconds
        if folder is not None and (not isinstance(folder, str | Path) or Path(folder).is_file()):
            raise ValueError(f"parking_dir must be a folder, got {folder!r}")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0
        ):
            raise ValueError(f"park_after_seconds must be a number >= 0, got {seconds!r}")

    def _check_int(self, name: str, low: int | None, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            kind = "an int or None" if optional else "an int"
            raise ValueError(f"{name} must be {kind}, got {value!r}")
        if low is not None and value < low:
            raise ValueError(f"{name} must be >= {low}, got {value}")


def offline_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `EngineConfig` for whole answers, which nobody reads token by token:
    ``num_decode_steps`` is 8 on every device if it is not given and the backend can. A stop string
    wastes at most the rest of these steps."""
    steps = settings.get("num_decode_steps")
    if steps is None and settings.get("attention_backend") != "xformers":
        steps = 8
    return {**settings, "num_decode_steps": steps}
