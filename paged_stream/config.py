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
    URL,
    Adapter,
    AttentionBackend,
    Device,
    Dtype,
    FilePath,
    Folder,
    KvCacheDtype,
    Model,
    NamedAdapters,
    Quantization,
    Speculation,
    SpeculativeConfig,
    Template,
)
from paged_stream.system.trace_context import import_opentelemetry

if TYPE_CHECKING:
    import torch

Init = TypeVar("Init", bound=Callable[..., None])


@explains_settings(HINTS, example="model='smollm2-135m-instruct'")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EngineConfig:
    """The settings of one engine. A field keeps what the user wrote; what follows from several
    fields is a property. Numbers may be numpy's and dtypes torch's; a folder may be a `Path` and
    may begin with ``~``.

    Args:
        model: what to load: a folder, a GGUF file or a name. ``"smollm2-135m-instruct"`` names a
            small model that is installed as a package.
        merge_lora: a LoRA adapter as PEFT writes it, which is merged into the weights while
            loading: a folder or a name on the hub. The matrices that it changes are then in
            ``dtype`` even if a file holds them quantised.
        lora_modules: LoRA adapters by the names under which a service offers them, each as
            ``"NAME=ADAPTER"``, loaded with the model. Requests may bring more.
        tokenizer: what to load the tokenizer from, if it is not the model's own: a folder, a GGUF
            file or a name.
        chat_template: how conversations are written, if it is not the model's own way: a Jinja
            template, or the path of a file that has one; a text with ``{`` in it is a template.
        cache_dir: folder for models converted from GGUF files. ``None`` is the folder
            ``paged_stream`` in ``$XDG_CACHE_HOME``, or in ``~/.cache`` if that is not set.
        device: where the model computes. ``"auto"`` is CUDA if there is a CUDA device and the op
            library was built for it, and the CPU otherwise.
        dtype: dtype of weights and activations. ``"auto"`` is bfloat16 if the checkpoint is 16-bit
            or quantized, and float32 otherwise. float16 needs CUDA. ``"half"`` and ``"float"`` mean
            float16 and float32. Sums are always accumulated in float32.
        quantization: format of the weights in memory. ``None`` keeps them in ``dtype``. ``"int8"``
            and ``"int4"`` round them, in blocks of 32, while loading. ``"auto"`` keeps the integers
            that a GGUF file or a quantised checkpoint holds, unless ``dtype`` asks for full
            precision. Activations keep 15 bits. On CUDA weights are always in ``dtype``, and
            ``"auto"`` means ``None``.
        kv_cache_dtype: dtype of the KV cache. ``"auto"`` is the model's dtype. ``"int8"``, with one
            scale per token and head, halves the memory of bfloat16 at a small loss of accuracy.
            ``"fp8"`` (e4m3) needs CUDA.
        block_size: tokens per block of the KV cache.
        num_sink_tokens: ``S``, tokens at the start of each stream that stay visible forever. 4 is
            enough for models trained without a sink token; use 1 for a model trained with one,
            which its tokenizer puts first.
        window_size: ``W``, the most recent tokens that a token sees, itself included. ``None`` is
            the trained length minus the sinks: results are exact up to there, and the stream slides
            afterwards. A model with learned absolute positions cannot have a window.
        kv_cache_memory_bytes: bytes for keys and values, or a text such as ``"4GiB"``. ``None``
            takes what ``max_num_seqs`` streams can use, but at most 4 GiB and half of the free
            memory; on CUDA, all that ``gpu_memory_utilization`` leaves.
        gpu_memory_utilization: the fraction of a CUDA device's memory that weights, activations and
            cache may take together. The largest step runs once at the start to measure what is
            left.
        attention_backend: what computes attention. ``"auto"`` is ``"native"``, this project's own
            kernels; ``"xformers"`` needs CUDA.
        max_num_seqs: the most sequences in one step. ``None`` is 64, or fewer if
            ``max_num_batched_tokens`` leaves no room for so many.
        max_num_batched_tokens: the most tokens in one step, at least ``max_num_seqs``. A larger
            number makes prefill cheaper per token; a smaller one shortens the time that other
            streams wait for their next token.
        num_decode_steps: steps that a batch of decoding sequences computes before the engine looks
            at the tokens, so that the device never waits. A delta then holds up to that many
            tokens, and a new request waits for that many steps. ``None`` is 1 on the CPU, 8 on CUDA
            and 8 for the whole answers of `LLM` and of batches.
        chunk_size: tokens; prompts are cut at multiples of it and nowhere else. ``None`` cuts them
            wherever ``max_num_batched_tokens`` requires, which on a CPU changes no bit of a result.
        speculative_config: guess tokens and compute several of them in one step, which gives the
            same tokens in fewer steps where guesses are right; CPU only. ``{"method": "ngram"}``
            guesses what followed when the last tokens were visible before, as in logs, code and
            answers that quote. ``num_speculative_tokens`` (8, at most 15) is the most that are
            guessed at once; ``prompt_lookup_max`` (4) down to ``prompt_lookup_min`` (2) tokens are
            looked for. ``{"model": "a-smaller-one"}`` lets a model with the same vocabulary guess,
            which may be the same model's file in 4 bits; ``num_speculative_tokens`` is 4 then.
        cuda_graphs: record the steps that only decode as CUDA graphs, so that the host launches
            each with one call. Recording takes a few seconds at the start.
        enable_prefix_caching: keep full blocks of keys and values after their sequence ends, and
            reuse them for sequences that begin with the same tokens under the same sinks and
            window.
        parking_memory_bytes: bytes of host memory for streams that had to leave the cache, or a
            text such as ``"4GiB"``; further ones go to disk. ``None`` is a quarter of the memory
            that is free at the start.
        parking_dir: folder for parked streams on disk. ``None`` is the system's folder for
            temporary files.
        park_after_seconds: park a stream after this many idle seconds even if nobody needs its
            blocks. ``None`` waits until somebody does.
        tensor_parallel_size: number of processes that share the model, one per GPU. Each holds a
            part of every layer and of the KV cache; the memory settings are for all of them
            together. More than 1 needs Ray.
        seed: seed of requests that bring none.
        num_threads: processor threads that this engine computes with. ``None`` is as many as torch
            would use, limited by the process's affinity mask and by the CPU quota of its control
            group. A replica of a pool uses 1; the replicas of a batch share the machine evenly.
        check_layers: look at what each layer computes, so that the error of a request whose logits
            are not finite names the layer where that began. For finding faults: every step is
            computed and looked at by itself, and takes longer.
        otlp_traces_endpoint: address of an OpenTelemetry collector that takes OTLP over HTTP, such
            as ``"http://localhost:4318/v1/traces"``: each finished request and turn becomes a span
            there. ``None`` leaves spans to the tracer provider of the process, if it has one.

    Raises:
        ValueError: names the field, its value and what is allowed.
        TypeError: there is no such field; says what to write instead.
        ImportError: ``otlp_traces_endpoint`` needs the extra ``otel``.
    """

    model: FilePath = field(metadata=takes(Model()))
    merge_lora: FilePath | None = setting(None, Adapter(optional=True))
    lora_modules: str | tuple[str, ...] | None = setting((), NamedAdapters())
    tokenizer: FilePath | None = setting(None, Model(optional=True))
    chat_template: FilePath | None = setting(None, Template(optional=True))
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
    speculative_config: SpeculativeConfig | None = setting(None, Speculation())
    cuda_graphs: bool = setting(True, Switch())
    enable_prefix_caching: bool = setting(True, Switch())
    parking_memory_bytes: int | str | None = setting(None, Bytes(0, optional=True))
    parking_dir: FilePath | None = setting(None, Folder(optional=True))
    park_after_seconds: float | None = setting(None, Number(0.0, infinite=True, optional=True))
    tensor_parallel_size: int = setting(1, Integer(1))
    seed: int = setting(0, Integer())
    num_threads: int | None = setting(None, Integer(1, optional=True))
    check_layers: bool = setting(False, Switch())
    otlp_traces_endpoint: str | None = setting(None, URL)

    def __post_init__(self) -> None:
        if isinstance(self.model, EngineConfig):
            raise ValueError(
                f"model must be {Model().allowed}, got an EngineConfig: LLMEngine and "
                "AsyncLLMEngine take one, LLM and RayLLM take its fields, as in "
                f"LLM({self.model.model!r})"
            )
        check_fields(self)
        self._check_budget()
        if self.otlp_traces_endpoint is not None:
            import_opentelemetry("sdk.trace", "exporter.otlp.proto.http.trace_exporter")

    __repr__ = changes_repr

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> EngineConfig:
        """Make a config from names and values that were read from a file or the environment.

        Raises:
            ValueError: as for the constructor, and for a name that is not a field.
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

    merge_lora: FilePath | None
    lora_modules: str | tuple[str, ...] | None
    tokenizer: FilePath | None
    chat_template: FilePath | None
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
    speculative_config: SpeculativeConfig | None
    cuda_graphs: bool
    enable_prefix_caching: bool
    parking_memory_bytes: int | str | None
    parking_dir: FilePath | None
    park_after_seconds: float | None
    tensor_parallel_size: int
    seed: int
    num_threads: int | None
    check_layers: bool
    otlp_traces_endpoint: str | None


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
