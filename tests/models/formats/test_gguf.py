"""GGUF files are converted once, whole or not at all; broken ones say what they are."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from paged_stream import EngineConfig, LLMEngine
from paged_stream.layers.large_pages import give_back
from paged_stream.models.formats import gguf as converter
from paged_stream.models.formats.files import is_weights_file
from paged_stream.models.formats.gguf_file import GGUFTensor
from paged_stream.models.formats.resolve import resolve_model
from tests.models.checkpoints import assert_same, load_decoder
from tests.models.conftest import TINY
from tests.models.gguf_files import write_gguf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}


def test_converted_once(tiny_llama, tmp_path, monkeypatch):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    first = resolve_model(path, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(converter, "convert", None)
    moved = path.rename(tmp_path / "sub.gguf").rename(tmp_path / "tiny.gguf")
    assert resolve_model(moved, cache_dir=tmp_path / "cache").folder == first.folder


def test_cache_root_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert converter.default_cache_dir() == tmp_path / "paged_stream"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert converter.default_cache_dir() == Path.home() / ".cache" / "paged_stream"


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"x")

    def fail(path, folder, with_tokenizer):
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "convert", fail)
    with pytest.raises(KeyboardInterrupt):
        converter.cached_conversion(path, tmp_path / "cache")
    assert [entry.suffix for entry in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_leftovers_of_a_killed_process_go(tmp_path, monkeypatch):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"x")
    monkeypatch.setattr(converter, "convert", lambda path, folder, _: (folder / "done").touch())
    folder = converter.cached_conversion(path, tmp_path / "cache")
    stale = folder.with_name(f"{folder.name}.tmpabc")
    folder.rename(stale)
    assert converter.cached_conversion(path, tmp_path / "cache") == folder
    assert (folder / "done").exists() and not stale.exists()


def test_simultaneous_starts_convert_once(tmp_path, monkeypatch):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"x")
    calls, have_looked, lock = [], threading.Barrier(4), converter._lock

    def lock_together(path):
        have_looked.wait()  # all have seen that there is nothing
        return lock(path)

    monkeypatch.setattr(converter, "_lock", lock_together)
    monkeypatch.setattr(converter, "convert", lambda path, folder, _: calls.append(folder))
    with ThreadPoolExecutor(4) as threads:
        cache = [tmp_path / "cache"] * 4
        folders = list(threads.map(converter.cached_conversion, [path] * 4, cache))
    assert len(calls) == 1 and len(set(folders)) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    config: Any = TINY | SHAPE
    model = LlamaForCausalLM(LlamaConfig(**config))
    return write_gguf(model, tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


@given(st.integers(0, 40) | st.integers(0, 20_000) | st.floats(0.0, 1.0, exclude_max=True))
@example(0)
@example(4)
@example(0.99999)
def test_truncated(whole, tmp_path, cut):
    """Anywhere: within the magic, the header, the metadata or the last tensor."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=tmp_path / "cache")
    message = str(error.value)
    assert message.startswith(f"{path} is truncated") and message.endswith("fetch the file again")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", ", but a pointer to one in Git LFS"),
        (b"<!DOCTYPE html><html>", ": it begins with b'<!DOCTYPE html><'"),
        (b"no", ": it begins with b'no'"),
    ],
)
def test_not_a_gguf_file(tmp_path, content, hint):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=tmp_path / "cache")
    assert f"{path} is not a GGUF file{hint}" in str(error.value)


def test_the_cache_is_where_the_settings_say(tiny_llama, tmp_path, monkeypatch):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    memory = {"kv_cache_memory_bytes": "4MiB"}
    LLMEngine(EngineConfig(model=path, cache_dir=tmp_path / "cache", **memory))
    assert len(list((tmp_path / "cache" / "gguf").glob("tiny-*/config.json"))) == 1
    assert not (tmp_path / "xdg").exists()
    LLMEngine(EngineConfig(model=path, **memory))
    assert len(list((tmp_path / "xdg" / "paged_stream" / "gguf").glob("tiny-*/config.json"))) == 1


def test_a_cache_that_cannot_be_written(tiny_llama, tmp_path):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    root = tmp_path / "tiny.gguf" / "cache"  # nothing can be in a file
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=root)
    message = str(error.value)
    assert f"into the cache folder {root / 'gguf'}: " in message and "Not a directory" in message
    assert "pass cache_dir=" in message and "set XDG_CACHE_HOME" in message


def test_a_user_without_a_home(tiny_llama, tmp_path, monkeypatch):
    """As in containers that run under a number."""
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(ValueError, match="home directory.*pass cache_dir=.* set XDG_CACHE_HOME"):
        resolve_model(path)


def test_weights_stay_in_the_file(tiny_llama, tmp_path, caplog):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    caplog.set_level(logging.INFO, logger="paged_stream.models")
    files = resolve_model(path, cache_dir=tmp_path / "cache")
    assert f"converting what {path} says once into {tmp_path / 'cache'}" in caplog.text
    assert files.gguf == path
    assert not [each for each in files.folder.iterdir() if is_weights_file(each.name)]


@pytest.fixture
def split(tiny_llama, tmp_path):
    """A model in three files, and in one."""
    model = tiny_llama(**SHAPE)
    whole = write_gguf(model, tmp_path / "whole.gguf")
    content = gguf.GGUFReader(whole)
    paths = [tmp_path / f"tiny-0000{i + 1}-of-00003.gguf" for i in range(3)]
    for index, path in enumerate(paths):
        write_gguf(model, path, only=content.tensors[index::3], split=(index, 3))
    return whole, paths


def test_one_model_in_several_files(split, tmp_path):
    whole, paths = split
    expected = load_decoder(whole, cache_dir=tmp_path / "cache")
    for path in paths:
        assert_same(load_decoder(path, cache_dir=tmp_path / "cache"), expected)


def test_several_files_that_are_not_one_model(split, tmp_path):
    _, paths = split

    def assert_refused(*parts):
        with pytest.raises(ValueError) as error:
            resolve_model(paths[0], cache_dir=tmp_path / "cache")
        for part in parts:
            assert part in str(error.value)

    third = paths[2].read_bytes()
    paths[2].unlink()
    assert_refused(f"{paths[0]} is one of 3 files; missing {paths[2].name}")
    paths[2].write_bytes(paths[1].read_bytes())
    assert_refused(f"{paths[2]} says that it is file 1 of 3 (split.no, split.count), not 2 of 3")
    paths[2].write_bytes(third[:200])
    assert_refused(f"{paths[2]} is truncated")
    paths[2].write_bytes(third)
    resolve_model(paths[0], cache_dir=tmp_path / "cache")
    alone = paths[1].rename(tmp_path / "alone.gguf")
    with pytest.raises(ValueError, match="alone.gguf is one of several; name them -00001-of-"):
        resolve_model(alone, cache_dir=tmp_path / "cache")


def test_what_is_read_is_memory_that_can_be_given_back(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"\1" * (64 << 10))
    read = torch.from_numpy(GGUFTensor("I8", [64 << 10], path, 0).data)
    assert read.sum() == 64 << 10
    give_back(read)
    assert not read.any()
