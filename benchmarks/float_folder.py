"""A model's folder as other engines take it: with its weights as plain numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file

from paged_stream.models.formats.gguf_shard import GGUFShard
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.models.registry import family_of


def float_folder(model: str) -> Path:
    """The folder of a model. That of a GGUF file is written once, beside the engine's cache, with
    the exact float32 weights that the file stands for. Of several who write it, the first one's
    stays."""
    files = resolve_model(model)
    if files.gguf is None:
        return files.folder
    folder = files.folder.with_name(f"{files.folder.name}-float32")
    if not folder.is_dir():
        config = load_config(files)
        shard = GGUFShard(files.gguf, family_of(config.model_type), config)
        with TemporaryDirectory(prefix=f"{folder.name}.tmp", dir=folder.parent) as place:
            work = shutil.copytree(files.folder, Path(place, folder.name))
            tensors = {name: shard.read(name) for name in shard.names}
            save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
            try:
                work.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder
