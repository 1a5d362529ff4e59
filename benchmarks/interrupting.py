"""Ways to raise an exception in a function that knows nothing of it, at a random moment."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_MOST_TURNS = 4.5  # a power of ten


class Interrupted(KeyboardInterrupt):
    """What a signal handler or another thread raises. Event loops swallow all but this kind."""


class Interrupter:
    """Interrupts functions in the main thread.

    Kinds: ``sigint`` (Ctrl-C), ``handler`` (a handler of another signal raises), ``thread``
    (another thread calls ``PyThreadState_SetAsyncExc``), and ``switch`` (the same by a thread that
    takes turns with this one every few bytecodes: it finds moments that last no time).
    """

    KINDS = ("sigint", "handler", "thread", "switch")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._armed = self._is_over = False
        self._seconds: dict[str, float] = {}  # that a function of this name takes
        self._main = threading.main_thread().ident or 0
        signal.signal(signal.SIGINT, lambda *_: self._raise(KeyboardInterrupt))
        signal.signal(signal.SIGALRM, lambda *_: self._raise(Interrupted))
        sys.setswitchinterval(1e-6)
        sys.unraisablehook = lambda _: None  # an exception within a finalizer

    def run(self, kind: str, name: str, function: Callable[[], Any]) -> tuple[bool, Any]:
        """Call a function, and interrupt it unless it is faster.

        Returns:
            Whether it was interrupted, and what it has returned.
        """
        seconds, turns = self._rng.uniform(0, self._seconds.get(name, 0.01)), 0
        if kind == "switch":
            seconds, turns = 0.0, int(10 ** self._rng.uniform(0, _MOST_TURNS))
        timer = threading.Timer(seconds, self._fire, [kind, turns])
        result, ended = None, False
        self._is_over = False
        try:
            began = time.perf_counter()
            timer.start()
            self._armed = True
            result = function()
            self._armed = False
            self._seconds[name], ended = time.perf_counter() - began, True
        except KeyboardInterrupt:
            self._armed = False
        while True:  # what was sent may come late
            try:
                self._is_over = True
                timer.cancel()
                timer.join()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._main), None)
                return not ended, result
            except KeyboardInterrupt:
                pass

    def _fire(self, kind: str, turns: int) -> None:
        while not self._armed and not self._is_over:
            pass
        for _ in range(turns):
            if not self._armed:
                return
        if not self._armed:
            return
        if kind in ("thread", "switch"):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._main), ctypes.py_object(Interrupted)
            )
        else:
            os.kill(os.getpid(), signal.SIGINT if kind == "sigint" else signal.SIGALRM)

    def _raise(self, error: type[BaseException]) -> None:
        if self._armed:
            self._armed = False
            raise error
