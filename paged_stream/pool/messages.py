"""What a replica tells its pool about a stream."""

from __future__ import annotations

from dataclasses import dataclass

from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.text.conversation import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """A stream after a replica has opened or edited it.

    Args:
        position: where its next token will stand.
        window_start: first position behind the sinks that its next token sees.
        sink_window: its sinks and window.
        conversation: what it remembers of the messages in it.
        seed: what the seeds of its turns are made from, if it comes from a file.
        num_turns: how many turns have begun, if it comes from a file.
    """

    position: int
    window_start: int
    sink_window: SinkWindow
    conversation: Conversation
    seed: int = 0
    num_turns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFacts:
    """A stream after a replica has appended messages.

    Args:
        token_ids: what was appended.
        template_rewrote: whether the template writes earlier messages otherwise than they were.
        has_cut: whether something was cut out first. Then the stream was saved afterwards.
        stream: the stream; its window begins where it did before anything was appended.
    """

    token_ids: list[int]
    template_rewrote: bool
    has_cut: bool
    stream: StreamFacts
