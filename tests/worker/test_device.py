"""Devices are found or refused by name, and settings refused that a device cannot have."""

from __future__ import annotations

import pytest
import torch

from paged_stream import EngineConfig, ops
from paged_stream.worker.device import check_settings, resolve_device

CUDA = torch.device("cuda", 0)


def machine(monkeypatch, *, devices: int, has_kernels: bool = True, capability=(9, 0)) -> None:
    """Let torch and the op library say what a machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(ops, "has_cuda", lambda: has_kernels)


@pytest.mark.parametrize(
    ("name", "devices", "has_kernels", "found"),
    [
        ("auto", 0, True, "cpu"),
        ("auto", 1, False, "cpu"),
        ("auto", 2, True, "cuda:0"),
        ("cpu", 2, True, "cpu"),
        ("cuda", 2, True, "cuda:0"),
        ("cuda:1", 2, True, "cuda:1"),
    ],
)
def test_what_is_found(monkeypatch, name, devices, has_kernels, found):
    machine(monkeypatch, devices=devices, has_kernels=has_kernels)
    assert resolve_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("name", "there_is", "message"),
    [
        ("cuda", {"devices": 0}, "device='cuda': torch finds no CUDA device; use 'cpu' or 'auto'"),
        ("cuda:1", {"devices": 1}, "device='cuda:1': there are 1 CUDA devices"),
        ("cuda", {"devices": 1, "has_kernels": False}, "was built without CUDA; rebuild it"),
        ("auto", {"devices": 1, "capability": (7, 5)}, "capability 7.5, needed is 8.0"),
    ],
)
def test_what_is_not_there_is_named(monkeypatch, name, there_is, message):
    machine(monkeypatch, **there_is)
    with pytest.raises(ValueError, match=message):
        resolve_device(name)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_weights_need_the_cpu(quantization):
    config = EngineConfig(model="x", quantization=quantization)
    with pytest.raises(ValueError, match=f"quantization='{quantization}' needs the CPU"):
        check_settings(config, CUDA)
    check_settings(config, torch.device("cpu"))


def test_guesses_need_the_cpu():
    config = EngineConfig(model="x", speculative_config={"method": "ngram"})
    with pytest.raises(ValueError, match="speculative_config needs the CPU"):
        check_settings(config, CUDA)
    check_settings(config, torch.device("cpu"))


@pytest.mark.parametrize("settings", [{}, {"dtype": "float16"}, {"kv_cache_dtype": "fp8"}])
def test_what_cuda_takes(settings):
    check_settings(EngineConfig(model="x", **settings), CUDA)


def test_the_op_library_says_for_what_it_was_built():
    name = "paged_stream::paged_attention"
    assert ops.has_cuda() == torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
