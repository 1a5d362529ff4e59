"""Deltas on their way from the engine's thread to whoever asked for a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from paged_stream.engine.core import EngineCore
from paged_stream.engine.outputs import RequestDelta


@dataclass(slots=True)
class Receipt:
    """Whether somebody has the deltas."""

    is_signed: bool = False


@dataclass(slots=True, weakref_slot=True)
class Parcel:
    """Deltas, which whoever asked for them may never get, as he was interrupted."""

    deltas: list[RequestDelta]
    receipt: Receipt = field(default_factory=Receipt)


def send(core: EngineCore, deltas: list[RequestDelta]) -> Parcel:
    """Pack deltas, in the engine's thread. If the parcel is gone before its receipt was signed, a
    later step returns them."""
    parcel = Parcel(deltas)
    if deltas:
        receipt = parcel.receipt
        core.errands.when_gone(
            parcel, lambda core: None if receipt.is_signed else core.turns.give_back(deltas)
        )
    return parcel
