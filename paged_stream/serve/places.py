"""What is known of the streams of a service: whose each one is, and when somebody used it last."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from paged_stream.serve.errors import UnknownStreamError
from paged_stream.serve.open_stream import OpenStream


class Place:
    """What is known of a stream, in the engine or not.

    Attributes:
        opened: ``None`` while it rests in its file.
        record: what is kept with it. A stream with one may go if there is no place for others.
        used: when somebody used it last, by the clock of `OpenStreams`.
    """

    def __init__(self, owner: str, opened: OpenStream | None, record: Any, used: float) -> None:
        self.owner = owner
        self.opened = opened
        self.record = record
        self.used = used
        self.num_users = 0
        self.waking = asyncio.Lock()

    @property
    def is_response(self) -> bool:
        """Whether it may go if there is no place for others."""
        return self.record is not None


class Places:
    """By the ids that clients know, least recently used first."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, Place] = OrderedDict()

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._places

    def __iter__(self) -> Iterator[tuple[str, Place]]:
        return iter(list(self._places.items()))

    def add(self, stream_id: str, place: Place) -> None:
        """Add a stream."""
        self._places[stream_id] = place

    def find(self, owner: str, stream_id: str) -> Place:
        """The place of a stream.

        Raises:
            UnknownStreamError: the owner has no such stream.
        """
        place = self._places.get(stream_id)
        if place is None or place.owner != owner:
            raise UnknownStreamError(f"there is no stream {stream_id!r}")
        return place

    def remove(self, stream_id: str) -> Place:
        """Forget a stream; returns what was known of it."""
        return self._places.pop(stream_id)

    def touch(self, stream_id: str, now: float) -> None:
        """Note that a stream was used now, if it is still there."""
        if stream_id in self._places:
            self._places[stream_id].used = now
            self._places.move_to_end(stream_id)

    def number(self, owner: str | None) -> int:
        """How many there are, of one owner or of all."""
        return sum(owner in (None, place.owner) for place in self._places.values())

    @property
    def num_responses(self) -> int:
        """How many of them are of responses."""
        return sum(place.is_response for place in self._places.values())

    def spare(self, owner: str | None) -> str | None:
        """The stream of a response that is missed least: one that others went on from, or else the
        one that was used least recently; ``None`` if there is none, of one owner or of all."""
        found = None
        for stream_id, place in self._places.items():
            if not place.is_response or place.num_users or owner not in (None, place.owner):
                continue
            if place.record["is_continued"]:
                return stream_id
            found = found or stream_id
        return found

    def forgotten(self, oldest: float) -> list[str]:
        """Those that nobody uses, or has used since a time."""
        unused = ((each, place) for each, place in self._places.items() if not place.num_users)
        return [stream_id for stream_id, place in unused if place.used <= oldest]

    @property
    def first_used(self) -> float | None:
        """When the stream was used that has been left alone for longest."""
        return min((p.used for p in self._places.values() if not p.num_users), default=None)
