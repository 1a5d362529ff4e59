"""Ray is an extra: without it, whoever needs it is told what to install."""

from __future__ import annotations

import importlib
import os
import socket
import sys

import pytest

from paged_stream.cli import main
from paged_stream.system.ray_extra import start_ray


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


def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        ray = Ray(is_initialized=False)
        start_ray(ray)
        assert ray.niceness is not None
    with pytest.raises(ConnectionError, match=f"RAY_ADDRESS is {address}, where no Ray answers"):
        start_ray(Ray(is_initialized=False))


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://head:10001"])
def test_other_addresses_are_for_ray_to_find(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    ray = Ray(is_initialized=False)
    start_ray(ray)
    assert ray.niceness is not None


class Ray:
    """Notes at which niceness it would run its workers."""

    niceness = None

    def __init__(self, is_initialized):
        self.is_initialized = lambda: is_initialized

    def init(self, **options):
        self.niceness = os.environ["RAY_worker_niceness"]


@pytest.mark.parametrize("chosen", [None, "7"])
def test_workers_of_a_ray_that_is_started_here_are_as_nice_as_this_process(monkeypatch, chosen):
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    if chosen is not None:
        monkeypatch.setenv("RAY_worker_niceness", chosen)
    ray = Ray(is_initialized=False)
    start_ray(ray)
    assert ray.niceness == (chosen or str(os.getpriority(os.PRIO_PROCESS, 0)))
    assert os.environ.get("RAY_worker_niceness") == chosen
    ray = Ray(is_initialized=True)
    start_ray(ray)
    assert ray.niceness is None
