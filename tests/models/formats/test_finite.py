"""Weights that are no finite numbers are refused; each file is looked at once."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paged_stream.attention.native import NativeBackend
from paged_stream.models.formats import checkpoint
from paged_stream.models.formats.gguf_file import read_gguf
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from tests.models.gguf_files import write_gguf

SHAPE = {"hidden_size": 64, "intermediate_size": 96}
NAME = "model.layers.1.mlp.down_proj.weight"
NOT_FINITE = f"tensor {NAME} has a number that is NaN or infinite"


def load(model, cache, dtype=torch.float32, quantization=None):
    files = resolve_model(model, cache_dir=cache)
    return load_model(files, load_config(files), dtype, "cpu", NativeBackend(), quantization)


def put(folder, value, name=NAME):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[7] = value
    save_file(tensors, path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("is_pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_number_that_is_not_finite(tiny_llama, save, tmp_path, value, is_pickled, dtype):
    folder = save(tiny_llama().to(dtype))
    load(folder, tmp_path / "cache")
    put(folder, value)
    if is_pickled:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    for _ in range(2):  # what is refused is not remembered
        with pytest.raises(ValueError, match=NOT_FINITE) as error:
            load(folder, tmp_path / "cache")
    assert str(folder) in str(error.value)


def test_small_files_leave_nothing_behind(tiny_llama, save, tmp_path):
    load(save(tiny_llama()), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_number_that_the_dtype_cannot_hold(tiny_llama, save, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL_BYTES", 0)
    folder = save(tiny_llama())
    put(folder, 1e5)
    load(folder, tmp_path)
    for cache in (tmp_path, tmp_path / "other"):  # known, or not
        with pytest.raises(ValueError, match=rf"tensor {NAME} has 1e\+05, .* largest .* 6.55e\+04"):
            load(folder, cache, torch.float16)


def test_a_file_is_looked_at_once(tiny_llama, save, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL_BYTES", 0)
    folder, seen = save(tiny_llama(), max_shard_size="50KB"), []
    note = checkpoint.Largest.note
    monkeypatch.setattr(
        checkpoint.Largest, "note", lambda self, *args: seen.append(args) or note(self, *args)
    )
    load(folder, tmp_path / "cache")
    once = len(seen)
    assert once == len(
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    )
    load(folder, tmp_path / "cache")
    assert len(seen) == once
    # Another file under its name, of the same size, is another file.
    path = sorted(folder.glob("*.safetensors"))[0]
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    load(folder, tmp_path / "cache")
    assert len(seen) == 2 * once
    # So is everything if what was remembered is damaged.
    (record,) = (tmp_path / "cache").rglob("largest.json")
    for content in ("", "[]", '{"files": 1}', "[" * 100_000):
        record.write_text(content)
        load(folder, tmp_path / "cache")
    assert len(seen) == 6 * once
    load(folder, tmp_path / "cache")
    assert len(seen) == 6 * once


def test_a_cache_that_cannot_be_written_costs_only_time(tiny_llama, save, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL_BYTES", 0)
    folder = save(tiny_llama())
    (tmp_path / "file").touch()
    load(folder, tmp_path / "file" / "cache")
    put(folder, math.nan)
    with pytest.raises(ValueError, match=NOT_FINITE):
        load(folder, tmp_path / "file" / "cache")


@pytest.mark.parametrize("kind", ["matrix", "scale of a block", "norm"])
def test_a_number_of_a_gguf_file(tiny_llama, tmp_path, kind):
    names = {
        "matrix": "attn_q.weight",
        "scale of a block": "ffn_up.weight",
        "norm": "attn_norm.weight",
    }
    name = f"blk.1.{names[kind]}"
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    data = read_gguf(path).tensors[name].data
    start = path.read_bytes().index(data.tobytes())
    content = bytearray(path.read_bytes())
    nan = np.float16(np.nan).tobytes() if data.dtype == np.uint8 else np.float32(np.nan).tobytes()
    content[start : start + len(nan)] = nan
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"tensor {name} has a number that is NaN or infinite"):
        load(path, tmp_path / "cache")


@pytest.mark.parametrize("quantization", [None, "auto"])
def test_a_scale_that_is_not_finite(tiny_llama, tmp_path, quantization):
    """In the blocks that a file runs in, and in what they are decoded to."""
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    tensor = read_gguf(path).tensors["blk.0.ffn_gate.weight"]
    content = bytearray(path.read_bytes())
    at = tensor.offset + 34 * 5
    content[at : at + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(content)
    match = "tensor blk.0.ffn_gate.weight has a number that is NaN or infinite"
    with pytest.raises(ValueError, match=match):
        load(path, tmp_path / "cache", quantization=quantization)


def test_a_gguf_file_is_looked_at_once(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL_BYTES", 0)
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    load(path, tmp_path / "cache")
    monkeypatch.setattr(checkpoint.Largest, "note", None)
    for dtype in (torch.float32, torch.bfloat16):
        for quantization in (None, "int8"):
            load(path, tmp_path / "cache", dtype, quantization)
