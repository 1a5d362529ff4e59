"""Where work is queued in order: CUDA streams, and on the CPU just the program."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch


class Mark(Protocol):
    """A point in a lane, behind all that was queued until then."""

    def reach(self) -> None:
        """Let the host wait until the lane is past it."""

    def is_reached(self) -> bool: ...


class Lane(Protocol):
    """A queue of work on a device."""

    def run(self, work: Callable[[], None]) -> None:
        """Queue what ``work`` does."""

    def mark(self) -> Mark:
        """Mark the end of what is queued."""

    def wait(self, mark: Mark) -> None:
        """Let what is queued from now on begin when another lane is past ``mark``."""

    def hold(self, tensor: torch.Tensor) -> None:
        """Keep a tensor's memory until what is queued now, and reads it, is done."""


class InOrder:
    """The CPU: what is run is done at once."""

    def run(self, work: Callable[[], None]) -> None:
        work()

    def mark(self) -> Mark:
        return self

    def wait(self, mark: Mark) -> None:
        pass

    def hold(self, tensor: torch.Tensor) -> None:
        pass

    def reach(self) -> None:
        pass

    def is_reached(self) -> bool:
        return True


class CudaMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def reach(self) -> None:
        self.event.synchronize()

    def is_reached(self) -> bool:
        return self.event.query()


class CudaLane:
    """A CUDA stream; ``None`` stands for whichever is current."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream

    def run(self, work: Callable[[], None]) -> None:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            work()

    def mark(self) -> Mark:
        event = torch.cuda.Event()
        event.record(self._now())
        return CudaMark(event)

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, CudaMark)
        self._now().wait_event(mark.event)

    def hold(self, tensor: torch.Tensor) -> None:
        tensor.record_stream(self._now())

    def _now(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream() if self._stream is None else self._stream


def make_lanes(device: torch.device) -> tuple[Lane, Lane]:
    """The lane of steps, and one for copies beside it."""
    if device.type == "cpu":
        lane = InOrder()
        return lane, lane
    return CudaLane(None), CudaLane(torch.cuda.Stream(device))
