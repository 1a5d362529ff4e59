"""The folder of a model in Hugging Face layout, and what is called how in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
# Beside the weights of a converted GGUF file: its matrices in the file's own blocks, in the
# safetensors format, but not under its suffix, because other engines load every file that has it.
BLOCKS_FILE = "weights.blocks"


class TokenizerFiles(NamedTuple):
    """Where a tokenizer is, and the setting that says so, as messages call it."""

    folder: Path
    setting: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """``folder`` holds config.json, weights and tokenizer of what the user called ``name``."""

    name: str
    folder: Path

    def read_json(self, filename: str) -> dict[str, Any]:
        path = self.folder / filename
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}); fetch the file again") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds no JSON object; fetch the file again")
        return content
