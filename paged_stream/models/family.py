"""What one model family states: how its config.json and its tensor names map to the decoder's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from paged_stream.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Weight:
    """Checkpoint tensor ``source`` fills rows ``start`` to ``stop`` of parameter ``target``.

    ``stop=None`` is the whole parameter; fused projections name one slice per source.
    """

    source: str
    target: str
    start: int = 0
    stop: int | None = None


class Family(ABC):
    """One family; stateless.

    ``model_types`` are the values of config.json's ``model_type`` it serves, ``gguf_architecture``
    is the value of ``general.architecture``, or ``None`` if GGUF files cannot be read. ``defaults``
    are transformers' defaults for fields that old config.json files leave out.
    """

    model_types: tuple[str, ...]
    gguf_architecture: str | None = None
    defaults: dict[str, Any]

    @abstractmethod
    def describe(self, config: Any) -> ModelConfig:
        """Map a config with transformers' attribute names; end tokens come from it alone."""

    @abstractmethod
    def weights(self, config: ModelConfig) -> Iterator[Weight]:
        """Every tensor that the checkpoint must hold."""

    def ignored(self, config: ModelConfig, source: str) -> bool:
        """Whether a checkpoint tensor outside ``weights`` is known to be harmless."""
        return source.endswith("rotary_emb.inv_freq")

    def from_gguf(self, config: ModelConfig, source: str, tensor: np.ndarray) -> np.ndarray:
        """Undo the layout change that llama.cpp's converter made to tensor ``source``."""
        return tensor
