"""GGUF files are converted once, whole or not at all; broken ones say what they are."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paged_stream.models import gguf as converter
from paged_stream.models.loader import resolve_model
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

    def fail(path, folder):
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "convert", fail)
    with pytest.raises(KeyboardInterrupt):
        converter.cached_conversion(path, tmp_path / "cache")
    assert [entry.suffix for entry in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_leftovers_of_a_killed_process_go(tmp_path, monkeypatch):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"x")
    monkeypatch.setattr(converter, "convert", lambda path, folder: (folder / "done").touch())
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
    monkeypatch.setattr(converter, "convert", lambda path, folder: calls.append(folder))
    with ThreadPoolExecutor(4) as threads:
        cache = [tmp_path / "cache"] * 4
        folders = list(threads.map(converter.cached_conversion, [path] * 4, cache))
    assert len(calls) == 1 and len(set(folders)) == 1


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.02, 0.5, 0.99])
def test_truncated(tiny_llama, tmp_path, fraction):
    whole = write_gguf(tiny_llama(**SHAPE), tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=tmp_path / "cache")
    message = str(error.value)
    assert str(path) in message and "fetch the file again" in message and "\n" not in message


def test_progress_is_for_those_who_want_to_know(tiny_llama, tmp_path, capsys, caplog):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    capsys.readouterr()
    resolve_model(path, cache_dir=tmp_path / "cache")
    assert capsys.readouterr().err == ""
    caplog.set_level(logging.INFO, logger="paged_stream.models")
    resolve_model(path, cache_dir=tmp_path / "other")
    assert "model: 100%" in capsys.readouterr().err
    assert f"converting {path} once into {tmp_path / 'other'}" in caplog.text
