"""What a replica tells its pool about a stream."""

from __future__ import annotations

from dataclasses import dataclass

from paged_stream.scheduler.sink_window import SinkWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """A stream after a replica has opened or edited it.

    Args:
        position: where its next token will stand.
        window_start: first position behind the sinks that its next token sees.
        sink_window: its sinks and window.
        has_chatted: whether a message was answered since it was opened.
        seed: what the seeds of its turns are made from, if it comes from a file.
        num_turns: how many turns have begun, if it comes from a file.
    """

    position: int
    window_start: int
    sink_window: SinkWindow
    has_chatted: bool
    seed: int = 0
    num_turns: int = 0
