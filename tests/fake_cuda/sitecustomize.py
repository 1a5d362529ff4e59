"""A CUDA device that is this machine's processor: what asks torch for a device "cuda" gets the CPU.

Every Python process that has this folder on its ``PYTHONPATH`` has it.

For programs that are to run on a GPU for the first time: a machine without one goes through them
from end to end, with all their processes. Tensors lie in the host's memory. CUDA streams, events
and graphs do at once what they stand for. The op library's CPU kernels compute, in float32 where
they do not have the dtype. `BREAKS` and `KILLS` name a call of an op at which the device fails.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# What a machine with a GPU need not have.
ABSENT = [
    *("datasets", "fastapi", "flashinfer", "gguf", "llguidance", "lm_eval", "pydantic", "ray"),
    *("starlette", "uvicorn", "xformers"),
]
# "op:count:file": at that call of the op, in the first process that comes to it and makes the file,
# the device fails for good, or the process is killed.
BREAKS, KILLS = "FAKE_CUDA_BREAKS", "FAKE_CUDA_KILLS"
_GIB = 1 << 30


def install(finders: list) -> None:
    """Let the next import of torch give the fake."""
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]
    after = {
        "torch": _change_torch,
        "paged_stream.worker.cuda_graphs": _change_graphs,
        "paged_stream.worker.worker": _change_worker,
    }
    finders.insert(0, _Finder(after))


class _Finder(importlib.abc.MetaPathFinder):
    """Changes modules when they have been loaded."""

    def __init__(self, after: dict[str, Callable[[ModuleType], None]]) -> None:
        self._after = after

    def find_spec(self, name, path=None, target=None):
        change = self._after.get(name)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def load(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = load
        return spec


class Event:
    """A moment of the host's."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self, stream: object = None) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        return (later.seconds - self.seconds) * 1e3

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class Stream:
    """A queue that is always empty."""

    def __init__(self, device: object = None) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Recorder:
    """Plays work back by doing it again."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work


class Profile:
    """Sees two kernels of half the time."""

    def __init__(self, **options: object) -> None:
        pass

    def __enter__(self) -> Profile:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._whole = (time.perf_counter() - self._began) * 1e6

    def events(self) -> list[SimpleNamespace]:
        import torch

        return [
            SimpleNamespace(
                name=f"kernel_{index}",
                device_type=torch.autograd.DeviceType.CUDA,
                time_range=SimpleNamespace(start=start, end=start + self._whole / 4),
            )
            for index, start in enumerate((0.0, self._whole / 2))
        ]


class Failures:
    """The calls at which the device fails."""

    def __init__(self) -> None:
        self.is_broken = False
        self._counts: dict[str, int] = {}

    def come_to(self, op: str) -> None:
        self._counts[op] = self._counts.get(op, 0) + 1
        if self._is_due(BREAKS, op):
            self.is_broken = True
            raise RuntimeError("CUDA error: unspecified launch failure")
        if self._is_due(KILLS, op):
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_due(self, kind: str, op: str) -> bool:
        name, count, path = os.environ.get(kind, "::").split(":")
        if name != op or self._counts[op] != int(count) or Path(path).exists():
            return False
        Path(path).touch()
        return True


def _change_graphs(module: ModuleType) -> None:
    module.CudaRecorder = Recorder  # type: ignore[attr-defined]


def _change_worker(module: ModuleType) -> None:
    """Let engines compute in bfloat16 where the processor's layers do not have the dtype."""
    import torch

    small = {torch.float16, torch.float8_e4m3fn}

    def without_small(known: Callable[..., Any]) -> Callable[..., Any]:
        def resolve(*args: Any) -> Any:
            dtype = known(*args)
            return torch.bfloat16 if dtype in small else dtype

        return resolve

    for name in ("resolve_dtype", "resolve_kv_dtype"):
        setattr(module, name, without_small(getattr(module, name)))


def _change_torch(torch: ModuleType) -> None:
    failures = Failures()

    def usable(*arguments: object) -> None:
        if failures.is_broken:
            raise RuntimeError("CUDA error: unspecified launch failure")

    def nothing(*arguments: object) -> None:
        pass

    properties = SimpleNamespace(name="a fake", total_memory=4 * _GIB, multi_processor_count=1)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *device: (9, 0),
        "get_device_properties": lambda *device: properties,
        "mem_get_info": lambda *device: (3 * _GIB, 4 * _GIB),
        "memory_allocated": lambda *device: 0,
        "max_memory_allocated": lambda *device: 0,
        "synchronize": usable,
        "set_device": nothing,
        "empty_cache": nothing,
        "reset_peak_memory_stats": nothing,
        "current_stream": Stream,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
    }.items():
        setattr(torch.cuda, name, value)
    torch.profiler.profile = Profile
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    torch._C._dispatch_has_kernel_for_dispatch_key = lambda name, key: has_kernel(
        name, "CPU" if key == "CUDA" else key
    )
    _enter_everywhere(torch, failures)


def _enter_everywhere(torch: ModuleType, failures: Failures) -> None:
    """Let the calls of all threads go through the fake."""
    from torch.overrides import TorchFunctionMode

    class OnHost(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            kwargs.pop("pin_memory", None)
            if getattr(func, "namespace", None) == "paged_stream":
                failures.come_to(func._schema.name.split("::")[1])
                return _run_op(torch, func, args, kwargs)
            if func is torch.Tensor.record_stream:
                return None
            if func in (torch.Tensor.pin_memory, torch.Tensor.cuda):
                return args[0]
            if func is torch.device:
                return func(*args, **kwargs)
            args = [_on_host(torch, x) for x in args]
            return func(*args, **{name: _on_host(torch, x) for name, x in kwargs.items()})

    OnHost().__enter__()
    bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def run(thread: threading.Thread) -> None:
        with OnHost():
            bootstrap(thread)

    threading.Thread._bootstrap_inner = run  # type: ignore[attr-defined]


def _on_host(torch: ModuleType, x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu") if x.type == "cuda" else x
    return "cpu" if isinstance(x, str) and x in ("cuda", "cuda:0") else x


def _run_op(torch: ModuleType, func: Any, args: Any, kwargs: Any) -> Any:
    """Run an op of the library on the CPU; in float32 if it has one of the dtypes of GPUs only."""
    small = {torch.float16, torch.float8_e4m3fn}
    if not any(isinstance(x, torch.Tensor) and x.dtype in small for x in args):
        return func(*args, **kwargs)
    floats = small | {torch.bfloat16}
    wide = [x.float() if isinstance(x, torch.Tensor) and x.dtype in floats else x for x in args]
    result = func(*wide, **kwargs)
    for x, computed in zip(args, wide, strict=True):
        if computed is not x:
            largest = torch.finfo(x.dtype).max
            x.copy_(computed.clamp(-largest, largest) if x.dtype in small else computed)

    def narrow(x: Any) -> Any:
        return x.to(args[0].dtype) if isinstance(x, torch.Tensor) else x

    return tuple(map(narrow, result)) if isinstance(result, tuple) else narrow(result)


install(sys.meta_path)
