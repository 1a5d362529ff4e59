"""The LoRA adapter of a request or a stream, as users name it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from paged_stream.scheduler.fields import as_int


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """A LoRA adapter that a request or a stream is to be computed with; named as in vLLM.

    Args:
        lora_name: what it is called.
        lora_int_id: its number, from 1 on. Different adapters of an engine have different ones.
        lora_path: its folder, as PEFT writes it, or its name on the hub.

    Raises:
        ValueError: names what is wrong.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str | os.PathLike[str]

    def __post_init__(self) -> None:
        if not isinstance(self.lora_name, str) or not self.lora_name:
            raise ValueError(f"lora_name must be a string, got {self.lora_name!r}")
        as_int("lora_int_id", self.lora_int_id, 1)
        if not isinstance(self.lora_path, str | os.PathLike):
            raise ValueError(f"lora_path must be a folder or a name, got {self.lora_path!r}")
        object.__setattr__(self, "lora_path", str(self.lora_path))


def named_adapters(lora_modules: Iterable[str]) -> dict[str, LoRARequest]:
    """The adapters of ``EngineConfig.lora_modules``, by their names."""
    pairs = [module.partition("=") for module in lora_modules]
    return {
        name: LoRARequest(name, number, path) for number, (name, _, path) in enumerate(pairs, 1)
    }
