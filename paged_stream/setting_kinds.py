"""Kinds of the fields of `EngineConfig`: models, folders, devices and types of numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict, cast, get_args

from paged_stream.scheduler.fields import Integer, Kind
from paged_stream.scheduler.speculation import MAX_GUESSES
from paged_stream.scheduler.word_fields import Choice, Text, Texts

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["auto", "int8", "int4"]
KvCacheDtype = Literal["auto", "int8", "fp8"]
AttentionBackend = Literal["auto", "native", "xformers"]
FilePath: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Model(Kind):
    """A model's name or path; ``~`` is the user's home."""

    metavar: ClassVar[str] = "MODEL"

    @property
    def allowed(self) -> str:
        return "a name, a folder, a .gguf file or a hub id"

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str | os.PathLike) or not str(value):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r}")
        return os.path.expanduser(os.fspath(value))


@dataclass(frozen=True, slots=True)
class Adapter(Model):
    """An adapter's folder, or its name on the hub."""

    metavar: ClassVar[str] = "ADAPTER"

    @property
    def allowed(self) -> str:
        return "a folder or a hub id"


@dataclass(frozen=True, slots=True)
class NamedAdapters(Texts):
    """Adapters by the names that requests call them: ``NAME=ADAPTER`` each."""

    metavar: ClassVar[str] = "NAME=ADAPTER"

    @property
    def allowed(self) -> str:
        return "NAME=ADAPTER, or a list of these with different names"

    def _check(self, name: str, value: Any) -> tuple[str, ...]:
        pairs = super(NamedAdapters, self)._check(name, value)
        names = [pair.partition("=")[0] for pair in pairs]
        if not all(all(pair.partition("=")) for pair in pairs) or len(set(names)) < len(names):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r}")
        return pairs


class SpeculativeConfig(TypedDict, total=False):
    """How to guess tokens, under vLLM's names; see ``EngineConfig.speculative_config``."""

    method: Literal["ngram", "draft_model"]
    model: FilePath
    num_speculative_tokens: int
    prompt_lookup_max: int
    prompt_lookup_min: int


@dataclass(frozen=True, slots=True)
class Speculation(Kind):
    """A `SpeculativeConfig`, or JSON text of one. It is kept with all of its keys."""

    optional: bool = True
    metavar: ClassVar[str] = "JSON"
    json_type: ClassVar[Any] = dict[str, Any]

    @property
    def allowed(self) -> str:
        return 'JSON object such as {"method": "ngram", "num_speculative_tokens": 8}'

    def _check(self, name: str, value: Any) -> SpeculativeConfig:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} must be a {self.allowed}, or None, got {value!r}")
        given = {key: item for key, item in value.items() if item is not None}
        method = given.pop("method", "draft_model" if "model" in given else None)
        if method not in _SPECULATION:
            known = ", ".join(map(repr, _SPECULATION))
            raise ValueError(f"{name}['method'] must be one of {known}, got {method!r}")
        settings = _SPECULATION[method]
        for key in given:
            if key not in settings:
                raise ValueError(f"{name} with {method!r} has {', '.join(settings)}, got {key!r}")
        checked = {
            key: kind.check(f"{name}[{key!r}]", given.get(key, default))
            for key, (kind, default) in settings.items()
        }
        if method == "ngram":
            least, most = checked["prompt_lookup_min"], checked["prompt_lookup_max"]
            if "prompt_lookup_max" not in given:
                checked["prompt_lookup_max"] = max(least, most)
            elif "prompt_lookup_min" not in given:
                checked["prompt_lookup_min"] = min(least, most)
            elif least > most:
                raise ValueError(
                    f"{name}['prompt_lookup_min'] must be <= prompt_lookup_max ({most}), "
                    f"got {least}"
                )
        return cast(SpeculativeConfig, {"method": method, **checked})

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text


# What each method has, with defaults.
_SPECULATION: Mapping[str, Mapping[str, tuple[Kind, Any]]] = {
    "ngram": {
        "num_speculative_tokens": (Integer(1, MAX_GUESSES), 8),
        "prompt_lookup_max": (Integer(1), 4),
        "prompt_lookup_min": (Integer(1), 2),
    },
    "draft_model": {
        "model": (Model(), None),
        "num_speculative_tokens": (Integer(1, MAX_GUESSES), 4),
    },
}


@dataclass(frozen=True, slots=True)
class Template(Kind):
    """A chat template, or the path of a file that has one; ``~`` is the user's home."""

    metavar: ClassVar[str] = "FILE"

    @property
    def allowed(self) -> str:
        return "a Jinja template or a file that has one"

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r}")
        return os.path.expanduser(os.fspath(value))


@dataclass(frozen=True, slots=True)
class Folder(Kind):
    """A path of a folder, which need not exist yet; ``~`` is the user's home."""

    metavar: ClassVar[str] = "FOLDER"

    @property
    def allowed(self) -> str:
        return "a folder"

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ValueError(f"{name} must be a folder, got {value!r}")
        folder = os.path.expanduser(os.fspath(value))
        if Path(folder).is_file():
            raise ValueError(f"{name} must be a folder, got {value!r}, which is a file")
        return folder


@dataclass(frozen=True, slots=True)
class Device(Text):
    """A device of torch, or its name."""

    pattern: str = r"auto|cpu|cuda(:\d+)?"
    form: str = "'auto', 'cpu', 'cuda' or 'cuda:N'"
    metavar: ClassVar[str] = "DEVICE"

    def _check(self, name: str, value: Any) -> str:
        return Text._check(self, name, str(value))


DTYPE = Choice(
    get_args(Dtype),
    same={"half": "float16", "float": "float32"},
    near={
        **dict.fromkeys(("fp32", "f32"), "float32"),
        **dict.fromkeys(("fp16", "f16"), "float16"),
        **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
    },
)
QUANTIZATION = Choice(get_args(Quantization), optional=True)
KV_CACHE_DTYPE = Choice(
    get_args(KvCacheDtype), same=dict.fromkeys(("fp8_e4m3", "float8_e4m3fn"), "fp8")
)
ATTENTION_BACKEND = Choice(get_args(AttentionBackend))
URL = Text(r"https?://\S+", "a URL that begins with http:// or https://", optional=True)
