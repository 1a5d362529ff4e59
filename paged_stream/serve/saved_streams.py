"""Streams that clients have saved under names of their own. They stay until they are removed."""

from __future__ import annotations

from pathlib import Path

from paged_stream.serve.errors import UnknownStreamError
from paged_stream.serve.open_stream import OpenStream
from paged_stream.serve.open_streams import OpenStreams


class SavedStreams:
    """What an owner saves, and opens again.

    Every method raises ValueError if the service has no folder for it, or a name is none.
    """

    def __init__(self, streams: OpenStreams) -> None:
        self._streams = streams

    async def save(self, owner: str, stream_id: str, name: str) -> None:
        """Write a stream; replace what has the name.

        Raises:
            UnknownStreamError: the owner has no such stream.
            TooManyStreamsError: there is no place for it.
            AnswerFailedError: it cannot be written.
        """
        path = self._streams.files.path_of_saved(owner, name)
        async with self._streams.using(owner, stream_id) as opened:
            if not path.is_file():
                await self._streams.make_room(owner)
            await self._streams.write(opened, path)

    async def restore(self, owner: str, name: str) -> OpenStream:
        """Open another stream as what was saved.

        Raises:
            UnknownStreamError: nothing was.
            TooManyStreamsError: there is no place for it.
        """
        loading = self._streams.loading(self._find(owner, name), repr(name))
        return await self._streams.open(owner, loading)

    def names(self, owner: str) -> list[str]:
        """What an owner has saved."""
        return self._streams.files.saved(owner) if self._streams.has_files else []

    def remove(self, owner: str, name: str) -> None:
        """Forget what was saved.

        Raises:
            UnknownStreamError: nothing was.
        """
        self._find(owner, name).unlink(missing_ok=True)

    def _find(self, owner: str, name: str) -> Path:
        path = self._streams.files.path_of_saved(owner, name)
        if not path.is_file():
            raise UnknownStreamError(f"nothing is saved as {name!r}")
        return path
