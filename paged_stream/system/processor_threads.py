"""How many processor threads torch's operators take: each engine's own number, while it computes.

torch counts per thread of the program, from that thread's first look on. Its OpenMP threads do not
survive a fork: in the child, the thread that has forked waits for them for ever. With a count of
one it needs none of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Fork:
    """Which thread has forked this process, if one has since torch was imported."""

    thread: int | None = None

    def note(self) -> None:
        self.thread = threading.get_ident()


_fork = _Fork()
os.register_at_fork(after_in_child=_fork.note)


@contextmanager
def processor_threads(count: int | None) -> Iterator[None]:
    """Compute with ``count`` threads, ``None`` as many as torch is set to; afterwards torch is as
    before. In a forked child, the thread that came with it is left with one."""
    before = torch.get_num_threads()
    if _fork.thread == threading.get_ident():
        count = before = 1
        torch.set_num_threads(1)
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
