"""The streams of a service: opened within limits, found by their ids, closed when nobody uses them,
and laid in files when the service ends."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from paged_stream.engine.api import AsyncEngineApi, AsyncStreamApi, OnEvict
from paged_stream.engine.lifetime import EngineStoppedError
from paged_stream.serve.errors import AnswerFailedError, TooManyStreamsError
from paged_stream.serve.open_stream import OpenStream
from paged_stream.serve.places import Place, Places
from paged_stream.serve.serve_options import ServeOptions
from paged_stream.serve.state_dir import StateDir
from paged_stream.serve.stream_events import StreamEvents

Opening = Callable[[OnEvict], Coroutine[Any, Any, AsyncStreamApi]]
_log = logging.getLogger(__name__)


class OpenStreams:
    """Streams by the ids that clients know, least recently used first.

    Args:
        engine: in which they are opened.
        options: their limits, and where they rest.
        clock: returns the time in seconds, as `time.time`.

    Raises:
        ValueError: as `StateDir` and `StateDir.claim`.
    """

    def __init__(
        self,
        engine: AsyncEngineApi,
        options: ServeOptions,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._options = options
        self._clock = clock
        self._places = Places()
        self._num_opening: Counter[str] = Counter()
        self._sweep: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ending = False
        self._files = None if options.state_dir is None else StateDir(str(options.state_dir))
        if self._files is not None:
            self._files.claim()
        for owner, stream_id, written in self._files.resting() if self._files else ():
            record = self.files.read_record(owner, stream_id)
            self._places.add(stream_id, Place(owner, None, record, written))

    @property
    def has_files(self) -> bool:
        """Whether there is a folder for files."""
        return self._files is not None

    @property
    def files(self) -> StateDir:
        """Where streams rest.

        Raises:
            ValueError: the service has no folder for them.
        """
        if self._files is None:
            raise ValueError("this service saves no streams; it was started without --state-dir")
        return self._files

    # Opening

    async def open(self, owner: str, opening: Opening) -> OpenStream:
        """Open a stream for a key.

        Args:
            opening: makes it.

        Raises:
            TooManyStreamsError: there is no place for it.
        """
        opened = await self.begin(owner, opening, uuid.uuid4().hex)
        await self.keep(owner, opened)
        return opened

    async def begin(self, owner: str, opening: Opening, stream_id: str) -> OpenStream:
        """Open a stream that nobody can find before `keep`. Whoever calls this closes it.

        Raises:
            TooManyStreamsError: there is no place for it.
        """
        self._check_running()
        await self.make_room(owner)
        events = StreamEvents()
        self._num_opening[owner] += 1
        try:
            return OpenStream(stream_id, await opening(events.on_evict), events)
        finally:
            self._num_opening[owner] -= 1

    async def keep(self, owner: str, opened: OpenStream, record: Any = None) -> None:
        """Let an owner find a stream.

        Args:
            record: of the response that the stream ends with, as JSON has it. Beyond the limit of
                responses, one goes; first one that others went on from.
        """
        self._places.add(opened.id, Place(owner, opened, record, self._clock()))
        self._plan_sweep()
        if self._places.num_responses > self._options.max_responses:
            if (spare := self._places.spare(None)) is not None:
                await self._close(spare)

    def loading(self, path: Path, name: str) -> Opening:
        """What opens a stream that was written to a file.

        Args:
            name: of the stream, for clients.
        """

        async def load(on_evict: OnEvict) -> AsyncStreamApi:
            try:
                return await self._engine.load_stream(path, on_evict=on_evict)
            except ValueError as error:  # it names files of this machine
                _log.warning("%s", error)
                raise ValueError(f"{name} cannot be restored; the server's log says why") from None

        return load

    async def make_room(self, owner: str) -> None:
        """Close what may be closed until one more stream is within the limits.

        Raises:
            TooManyStreamsError: that is not enough.
        """
        await self._close_forgotten()
        limits: list[tuple[int, str | None]] = [(self._options.max_streams, None)]
        if self._options.max_streams_per_key is not None:
            limits.append((self._options.max_streams_per_key, owner))
        for limit, whose in limits:
            while self._number(whose) >= limit:
                if (spare := self._places.spare(whose)) is None:
                    raise TooManyStreamsError(f"there are {limit} streams; close one first")
                await self._close(spare)

    def _number(self, owner: str | None) -> int:
        """How many places are taken, of one owner or of all."""
        opening = self._num_opening.total() if owner is None else self._num_opening[owner]
        num_saved = self.files.num_saved(owner) if self.has_files else 0
        return self._places.number(owner) + opening + num_saved

    # Using

    @asynccontextmanager
    async def using(self, owner: str, stream_id: str) -> AsyncIterator[OpenStream]:
        """A stream that is not closed for being idle before the block is left. It is brought back
        if it rests in its file.

        Raises:
            UnknownStreamError: the owner has no such stream.
            ValueError: it cannot be restored.
        """
        self._check_running()
        place = self._places.find(owner, stream_id)
        place.num_users += 1
        try:
            async with place.waking:
                self._places.find(owner, stream_id)  # it may have been closed meanwhile
                if place.opened is None:
                    place.opened = await self._wake(owner, stream_id)
            yield place.opened
        finally:
            place.num_users -= 1
            self._places.touch(stream_id, self._clock())
            self._plan_sweep()

    async def _wake(self, owner: str, stream_id: str) -> OpenStream:
        events, path = StreamEvents(), self.files.path_of(owner, stream_id)
        loading = self.loading(path, f"the stream {stream_id!r}")
        stream = await loading(events.on_evict)
        # What it becomes is not in the file: after a crash, nobody goes on from an old state.
        self.files.remove(owner, stream_id)
        return OpenStream(stream_id, stream, events)

    def record(self, owner: str, stream_id: str) -> Any:
        """What is kept with a stream.

        Raises:
            UnknownStreamError: the owner has no such stream.
        """
        return self._places.find(owner, stream_id).record

    def ids(self, owner: str) -> list[str]:
        """The streams of one owner."""
        return [stream_id for stream_id, place in self._places if place.owner == owner]

    async def write(self, opened: OpenStream, path: Path) -> None:
        """Write a stream to a file.

        Raises:
            AnswerFailedError: it cannot be written.
            ValueError: as `AsyncStreamApi.save`.
        """
        try:
            await asyncio.to_thread(self.files.make_folder_of, path)
            await opened.stream.save(path)
        except OSError as error:
            _log.error("%s", error)
            raise AnswerFailedError(f"the stream cannot be saved: {error.strerror}") from error

    # The end of a stream

    async def close(self, owner: str, stream_id: str) -> None:
        """Close a stream.

        Raises:
            UnknownStreamError: the owner has no such stream.
        """
        self._places.find(owner, stream_id)
        await self._close(stream_id)

    async def _close(self, stream_id: str) -> None:
        place = self._places.remove(stream_id)
        async with place.waking:
            if place.opened is not None:
                await place.opened.close()
            elif self.has_files:
                self.files.remove(place.owner, stream_id)

    async def _close_forgotten(self) -> None:
        if self._options.max_idle_seconds is None:
            return
        for stream_id in self._places.forgotten(self._clock() - self._options.max_idle_seconds):
            if stream_id in self._places:
                await self._close(stream_id)

    def _plan_sweep(self) -> None:
        """Come back when the stream that was left alone first has been so for too long."""
        idle = self._options.max_idle_seconds
        if self._sweep is not None or idle is None or self._is_ending:
            return
        if (used := self._places.first_used) is not None:
            delay = max(0.0, used + idle - self._clock())
            self._sweep = asyncio.get_running_loop().call_later(delay, self._start_sweep)

    def _start_sweep(self) -> None:
        async def sweep() -> None:
            try:
                await self._close_forgotten()
            except Exception as error:
                _log.error("streams that nobody uses were not all closed: %s", error)
            self._sweep = None
            self._plan_sweep()

        task = asyncio.ensure_future(sweep())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The end of the service

    def _check_running(self) -> None:
        if self._is_ending:
            raise EngineStoppedError("the service is ending")

    def let_go(self) -> None:
        """End what only waits for news of streams: the service is to end."""
        for _, place in self._places:
            if place.opened is not None:
                place.opened.events.end()

    async def rest(self) -> None:
        """End all turns, and write what is open to files, if there is a folder for them. One stream
        that cannot be written does not keep others from it."""
        self._is_ending = True
        if self._sweep is not None:
            self._sweep.cancel()
        if not self.has_files:
            return
        for stream_id, place in self._places:
            if place.opened is None:
                continue
            try:
                await place.opened.stream.end_turn()
                await self.write(place.opened, self.files.path_of(place.owner, stream_id))
                if place.record is not None:
                    self.files.write_record(place.owner, stream_id, place.record)
            except Exception as error:
                _log.error("the stream %s is lost: %s", stream_id, error)
