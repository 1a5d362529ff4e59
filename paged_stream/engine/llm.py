"""Offline use: a model by its name, and whole answers."""

from __future__ import annotations

from typing import Unpack

from paged_stream.config import EngineConfig, EngineSettings, offline_settings
from paged_stream.engine.llm_engine import LLMEngine


class LLM(LLMEngine):
    """An `LLMEngine` for whole answers, made of a model's name and settings.

    Args:
        model: ``"smollm2-135m-instruct"``, a folder, a ``.gguf`` file or a hub id.
        settings: any other field of `EngineConfig`. ``num_decode_steps`` is 8 on every device if it
            is not given; see `offline_settings`.

    Raises:
        ValueError: as `LLMEngine`.
    """

    def __init__(self, model: str, **settings: Unpack[EngineSettings]) -> None:
        super().__init__(EngineConfig(model=model, **offline_settings(settings)))
