"""The folder of a model in Hugging Face layout, and what is called how in it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paged_stream.system.short_text import short_error
from paged_stream.system.whole_files import read_regular

ADAPTER_FILE = "adapter_config.json"  # in the folder of a LoRA adapter
PARAMS_FILE = "params.json"  # of Mistral's own releases, in place of config.json
_MOST_JSON_BYTES = 64 << 20
_WEIGHTS_FILE = re.compile(r".+\.(safetensors|bin)(\.index(\.\w+)?\.json)?")


def is_weights_file(name: str) -> bool:
    """Whether a file of this name holds weights, or lists files that do."""
    return _WEIGHTS_FILE.fullmatch(name) is not None


class TokenizerFiles(NamedTuple):
    """Where a tokenizer is, and the setting that says so, as messages call it."""

    folder: Path
    setting: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """``folder`` holds config.json, weights and tokenizer of what the user called ``name``.

    ``checks`` is the folder for what was found out about its weights, or ``None`` if there is none.
    The weights are in the file ``gguf``, if that is one. The folder ``adapter`` holds what is
    merged into them, if there is any.
    """

    name: str
    folder: Path
    checks: Path | None = None
    gguf: Path | None = None
    adapter: Path | None = None

    @property
    def place(self) -> Path:
        """Where the weights are."""
        return self.gguf or self.folder

    @property
    def holds_blocks(self) -> bool:
        """Whether matrices may be quantised."""
        return self.gguf is not None or bool(self.quantization_config())

    def quantization_config(self) -> dict[str, Any]:
        """How safetensors are quantised, as config.json says, or quantize_config.json, which
        AutoGPTQ wrote beside it; empty if they are not.

        Raises:
            ValueError: it is no JSON object.
        """
        path = self.folder / "config.json"
        config = read_json_object(path).get("quantization_config") if path.is_file() else None
        if config is not None and not isinstance(config, dict):
            raise ValueError(f"{path}: quantization_config must be an object")
        path = self.folder / "quantize_config.json"
        if not config and path.is_file():
            config = {"quant_method": "gptq"} | read_json_object(path)
        return config or {}

    def read_json(self, filename: str) -> dict[str, Any]:
        """Read a file that holds a JSON object.

        Raises:
            ValueError: it does not, it is too large, or it cannot be read.
        """
        return read_json_object(self.folder / filename)


def read_json_object(path: Path) -> dict[str, Any]:
    """As `ModelFiles.read_json`."""
    try:
        if (size := path.stat().st_size) > _MOST_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {_MOST_JSON_BYTES:,}")
        content = json.loads(read_regular(path))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; fetch the file again") from None
    except (OSError, ValueError) as error:
        reason = short_error(error)
        raise ValueError(f"{path} is not valid JSON ({reason}); fetch the file again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; fetch the file again")
    return content
