"""How an engine reaches its workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.output import KVOperation, ModelOutput, SchedulerOutput
from paged_stream.worker.kv_cache import CachePlan


class Executor(ABC):
    """Runs scheduled steps somewhere.

    ``cache_plan`` is what its workers have room for, ``fingerprint`` says which weights they run,
    ``default_decode_steps`` for how many steps they had better decode by themselves, and
    ``runs_ahead`` whether more of the same had better be submitted before the result is read, so
    that what the host does with it hides behind the device.
    """

    cache_plan: CachePlan
    fingerprint: str
    default_decode_steps: int = 1
    runs_ahead: bool = False

    @abstractmethod
    def execute(self, output: SchedulerOutput) -> ModelOutput:
        """Compute one step, on every worker that has a part in it."""

    def submit(self, output: SchedulerOutput) -> Callable[[], ModelOutput]:
        """Let a step be computed; what comes back waits for it."""
        result = self.execute(output)
        return lambda: result

    @abstractmethod
    def apply(self, operations: Sequence[KVOperation]) -> None:
        """Do to the cache what the scheduler decided, in order.

        Raises:
            ParkedLostError: what is to be restored does not come back.
        """

    @abstractmethod
    def read(self, slots: array[int]) -> KVTokens:
        """Copy tokens out of the cache."""

    @abstractmethod
    def put_parked(self, key: int, tokens: KVTokens) -> None:
        """Add a sequence to those that were moved out of the cache."""

    @abstractmethod
    def read_parked(self, key: int) -> KVTokens:
        """Look at a sequence that was moved out of the cache.

        Raises:
            ParkedLostError: it cannot be read.
        """

    @abstractmethod
    def parked_location(self, key: int) -> Literal["host", "disk"]:
        """Where it is: ``"host"`` or ``"disk"``."""

    @abstractmethod
    def parked_bytes(self) -> tuple[int, int]:
        """Bytes of such sequences in host memory and on disk."""

    @abstractmethod
    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of the cache that are reserved, and those of them that are in memory."""

    @abstractmethod
    def load_adapter(self, folder: Path) -> str:
        """Load a LoRA adapter, as PEFT writes it; returns its key, a digest of it, by which
        sequences are computed with it from now on.

        Raises:
            ValueError: it cannot be read, or is none for the model.
        """

    @abstractmethod
    def drop_adapter(self, key: str) -> None:
        """Let go of an adapter that no sequence has."""

    @abstractmethod
    def close(self) -> None:
        """Free what the workers hold, and end those in other processes; harmless twice."""
