"""The conversations of one chat, by name: streams, and where in them each turn begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paged_stream.engine.llm_engine import LLMEngine
    from paged_stream.engine.outputs import RequestDelta
    from paged_stream.engine.stream import Stream
    from paged_stream.scheduler.sampling_params import SamplingParams


@dataclass(slots=True)
class Conversation:
    """One stream.

    Args:
        system: its pinned system message, if it is known.
        turns: position where each turn begins that can still be taken back, oldest first.
        is_whole: whether nothing but the system message is before the first of them.
    """

    stream: Stream
    system: str | None
    turns: list[int] = field(default_factory=list)
    is_whole: bool = True


class Conversations:
    """The conversations; one of them is the current one.

    Every method leaves everything as it was if it raises ValueError, OSError or RuntimeError.
    """

    def __init__(self, engine: LLMEngine, system: str | None) -> None:
        self._engine = engine
        self.name = "main"
        self._all = {self.name: self._begin(system)}

    @property
    def current(self) -> Conversation:
        return self._all[self.name]

    @property
    def names(self) -> list[str]:
        return list(self._all)

    def close(self) -> None:
        for conversation in self._all.values():
            conversation.stream.close()

    def ask(self, text: str, params: SamplingParams) -> Iterator[RequestDelta]:
        """Ask in the current conversation."""
        conversation, start = self.current, self.current.stream.position
        deltas = conversation.stream.chat(text, params)
        first = conversation.stream.stats().window_start
        turns, is_whole = conversation.turns, conversation.is_whole
        # The first turn of all can be taken back however long it is gone: by beginning anew.
        if any(turn < first for turn in turns[1 if is_whole else 0 :]):
            conversation.turns = [turn for turn in turns if turn >= first]
            conversation.is_whole = False
        conversation.turns.append(start)
        return deltas

    def fork(self, name: str | None) -> str:
        """Go on in a copy; returns its name."""
        name = self._new_name(name)
        old = self.current
        self._all[name] = Conversation(old.stream.fork(), old.system, list(old.turns), old.is_whole)
        self.name = name
        return name

    def switch(self, name: str) -> None:
        """Make another conversation the current one."""
        if name not in self._all:
            raise ValueError(f"there is no conversation {name!r}, only {', '.join(self._all)}")
        self.name = name

    def pin(self, text: str) -> str:
        """Begin anew, with a text that joins the system message; returns the name."""
        old = self.current
        begun = self._begin(text if old.system is None else f"{old.system}\n{text}")
        if old.is_whole and not old.turns:
            self._replace(begun)
        else:
            self._all[name := self._new_name(None)] = begun
            self.name = name
        return self.name

    def rewind(self, num_turns: int) -> None:
        """Forget the last turns."""
        conversation = self.current
        turns = conversation.turns
        if not 1 <= num_turns <= len(turns):
            raise ValueError(f"{len(turns)} turns can be taken back, not {num_turns}")
        if num_turns == len(turns) and conversation.is_whole:
            self._replace(self._begin(conversation.system))
            return
        conversation.stream.rewind(turns[-num_turns])
        del turns[-num_turns:]

    def cut(self, start: int, end: int) -> None:
        """Take the tokens at positions ``[start, end)`` out."""
        conversation = self.current
        stream = conversation.stream
        stream.cut(start, end)
        # What is older moved up to close the gap.
        conversation.turns = [
            turn + (end - start) if turn < start else max(turn, end) for turn in conversation.turns
        ]

    def save(self, path: Path) -> int:
        """Write the current conversation to a file; returns the length of its stream."""
        self.current.stream.save(path)
        return self.current.stream.position

    def load(self, path: Path) -> int:
        """Go on with a saved conversation instead of the current one; returns its length."""
        stream = self._engine.load_stream(path)
        self._replace(Conversation(stream, None, is_whole=False))
        return stream.position

    def describe(self) -> str:
        """The current conversation's stream, and which turns can be taken back."""
        conversation = self.current
        stats = conversation.stream.stats()
        lines = [
            f"stream      {stats.num_tokens:,} tokens, {stats.num_visible_tokens:,} visible, "
            f"{stats.num_evicted_tokens:,} evicted; the window begins at {stats.window_start:,}",
            f"KV          {stats.kv_bytes / 2**20:.2f} MiB, {stats.location}",
        ]
        if len(self._all) > 1:
            others = (f"[{name}]" if name == self.name else name for name in self._all)
            lines.append(f"all         {', '.join(others)}")
        bounds = [*conversation.turns, stats.num_tokens]
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            back = len(conversation.turns) - number
            lines.append(f"{back:>3} back    positions {start} to {end}")
        return "\n".join(lines)

    def _begin(self, system: str | None) -> Conversation:
        # Pinned, the system message stays visible however long the conversation gets.
        pin = None if system is None else [{"role": "system", "content": system}]
        return Conversation(self._engine.open_stream(pin=pin), system)

    def _replace(self, conversation: Conversation) -> None:
        self.current.stream.close()
        self._all[self.name] = conversation

    def _new_name(self, name: str | None) -> str:
        if name is None:
            numbers = map(str, itertools.count(2))
            return next(number for number in numbers if number not in self._all)
        if name in self._all:
            raise ValueError(f"there is a conversation {name!r} already; /switch {name} goes there")
        return name
