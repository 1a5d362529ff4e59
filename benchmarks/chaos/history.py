"""What has happened to a stream, and the same on an engine to which nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from paged_stream import EngineConfig, LLMEngine, SamplingParams, Stream

VOCABULARY = 256
PROBE = 6  # tokens that a stream must still generate as it should when it is compared


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Attributes:
        name: ``append``, ``generate``, ``cut`` or ``rewind``.
        numbers: ids that were appended, how many tokens were generated, the ends of the span that
            was cut, or the position.
        seed: of a turn; ``None`` is greedy.
        read: the first tokens of the turn, as far as somebody has read them.
    """

    name: str
    numbers: tuple[int, ...]
    seed: int | None = None
    read: tuple[int, ...] = ()


@dataclass(slots=True)
class History:
    """How a stream was opened, and all that changed it."""

    opening: dict[str, Any]
    events: list[Event] = field(default_factory=list)

    def copy(self) -> History:
        return History(self.opening, list(self.events))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        tokens: that were compared.
        differences: what is not as it should be, in words.
    """

    tokens: int
    differences: tuple[str, ...]


def turn_params(num_tokens: int, seed: int | None) -> SamplingParams:
    temperature = 0.0 if seed is None else 1.0
    return SamplingParams(
        temperature=temperature, seed=seed, max_tokens=num_tokens, ignore_eos=True
    )


def compare(
    settings: dict[str, Any], history: History, visible: list[tuple[int, list[int]]]
) -> Comparison:
    """Do all that a history tells on an engine of its own, and compare.

    Args:
        settings: of the engine.
        visible: what the stream sees at its end, in runs: the first position and the ids.
    """
    differences: list[str] = []
    num_tokens = 0
    with _engine(tuple(sorted(settings.items()))).open_stream(**history.opening) as stream:
        for number, event in enumerate(history.events):
            generated = _DO[event.name](stream, event)
            num_tokens += len(event.read)
            if tuple(generated[: len(event.read)]) != event.read:
                differences.append(f"event {number}: {event} instead of {generated}")
        runs = [(run.start, run.token_ids) for run in stream.visible().runs]
        if runs != visible:
            differences.append(f"sees {visible} instead of {runs}")
    return Comparison(num_tokens + sum(len(ids) for _, ids in visible), tuple(differences))


@cache
def _engine(settings: tuple[tuple[str, Any], ...]) -> LLMEngine:
    return LLMEngine(EngineConfig(**dict(settings)))


def _generate(stream: Stream, event: Event) -> list[int]:
    deltas = stream.generate(turn_params(event.numbers[0], event.seed))
    return [token for delta in deltas for token in delta.delta_token_ids]


def _edit(edit: Callable[[Stream, Event], None]) -> Callable[[Stream, Event], list[int]]:
    def run(stream: Stream, event: Event) -> list[int]:
        edit(stream, event)
        return []

    return run


_DO = {
    "append": _edit(lambda stream, event: stream.append(list(event.numbers))),
    "generate": _generate,
    "cut": _edit(lambda stream, event: stream.cut(*event.numbers)),
    "rewind": _edit(lambda stream, event: stream.rewind(*event.numbers)),
}
