"""Ray is an extra: without it, whoever needs it is told what to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from paged_stream.cli import main


def test_the_command_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--num-replicas", "2"]) == 2
    assert 'pip install "paged-stream[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize("module", ["executor.ray", "pool.async_ray_llm", "pool.ray_llm"])
def test_what_is_missing_is_named(monkeypatch, module):
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in list(sys.modules):
        if name.startswith(("paged_stream.pool", "paged_stream.executor.ray")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "paged-stream\[ray\]"'):
        importlib.import_module(f"paged_stream.{module}")
