"""A model's folder as other engines take it: with its weights as plain numbers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from paged_stream.models.formats.gguf_shard import GGUFShard
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.models.registry import family_of


def float_folder(model: str) -> Path:
    """The folder of a model. That of a GGUF file is written once, beside the engine's cache, with
    the exact float32 weights that the file stands for."""
    files = resolve_model(model)
    if files.gguf is None:
        return files.folder
    folder = files.folder.with_name(f"{files.folder.name}-float32")
    if not folder.is_dir():
        config = load_config(files)
        shard = GGUFShard(files.gguf, family_of(config.model_type), config)
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp", dir=folder.parent))
        shutil.copytree(files.folder, work, dirs_exist_ok=True)
        tensors = {name: shard.read(name) for name in shard.names}
        save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
        work.rename(folder)
    return folder
