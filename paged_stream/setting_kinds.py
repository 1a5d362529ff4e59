"""Kinds of the fields of `EngineConfig`: models, folders, devices and types of numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from paged_stream.scheduler.fields import Kind
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
