"""What a pool knows of a stream: everything it has acknowledged. Any replica can go on from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from paged_stream.pool.evictions import Evictions
from paged_stream.pool.journal import Journal
from paged_stream.pool.messages import StreamFacts
from paged_stream.pool.replica import Replica
from paged_stream.text.conversation import Conversation


class History:
    """The tokens of one stream, as a file and those that came since, and its other properties.

    Attributes:
        key: its name on the replica where it lives or is being restored. Every attempt has another
            one, so that what Ray still does of an earlier attempt cannot be mistaken for this.
        seed: 63 bits that the seeds of its turns are made from.
        num_turns: how many turns have begun.
        conversation: what is remembered of the messages in it; ``None`` until it is opened.

    Args:
        name: the stream's name in its pool.
        folder: where its files go.
        options: what it was opened with, as keyword arguments of `AsyncLLMEngine.open_stream`.
        on_evict: called when tokens leave the window.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        options: dict[str, Any],
        on_evict: Callable[[int, int], object] | None = None,
    ) -> None:
        self.name = self.key = name
        self.options = options
        self.seed = self.num_turns = 0
        self.conversation: Conversation | None = None
        self._folder = folder
        self._on_evict = on_evict
        self._evictions: Evictions | None = None
        self._journal: Journal | None = None
        self._version = self._num_keys = 0
        self._is_editing = False

    @property
    def journal(self) -> Journal:
        assert self._journal is not None, "the stream was not opened"
        return self._journal

    def begin(self, facts: StreamFacts, path: Path | None) -> None:
        """Note that the stream was opened.

        Args:
            path: a file with the stream as it is now, if there is one.
        """
        self._journal = Journal(facts.position, path)
        self.conversation = facts.conversation
        if self._on_evict is not None:
            self._evictions = Evictions(self._on_evict, facts.sink_window, facts.window_start)

    def note(self, token_ids: Sequence[int], *, generated: bool = False) -> None:
        """Acknowledge tokens."""
        delete(self.journal.extend(token_ids, generated=generated))
        if self._evictions is not None:
            self._evictions.tell(self.journal.end)

    @contextmanager
    def editing(self) -> Iterator[None]:
        """While the stream is edited. A save that is made meanwhile may hold the edit, or not, and
        nobody knows whether the edit will succeed. So it is no part of the journal."""
        self._journal, self._is_editing = replace(self.journal), True
        try:
            yield
        finally:
            self._is_editing = False

    def note_edit(self, facts: StreamFacts, path: Path) -> None:
        """Note that the stream was edited, and saved afterwards.

        Args:
            path: the file with the edited stream.
        """
        old, self._journal = self.journal, Journal(facts.position, path)
        self.conversation = facts.conversation
        if self._evictions is not None:
            self._evictions.move_to(facts.window_start)
            self._evictions.tell(facts.position)
        delete([*old.forget_ahead(), *([] if old.path is None else [old.path])])

    def new_key(self) -> str:
        """Make a new `key`."""
        self._num_keys += 1
        self.key = f"{self.name}.{self._num_keys}"
        return self.key

    async def restore_on(self, replica: Replica) -> None:
        """Restore the stream on a replica.

        Raises:
            NoAnswerError: perhaps it is there, and perhaps not.
        """
        journal = self.journal
        path = None if journal.path is None else str(journal.path)
        args = (self.new_key(), self.options, path, journal.tokens, self.conversation)
        facts = await replica.call("restore", *args, journal.is_continued)
        assert facts.position == journal.end, f"restored to {facts.position}, not {journal.end}"
        journal.num_unsaved = len(journal.tokens)

    async def save_on(self, replica: Replica) -> None:
        """Save the stream, which lives on this replica.

        Raises:
            NoAnswerError: it is not saved.
            OSError: the file cannot be written.
        """
        journal = None if self._is_editing else self.journal
        path, position = await self.write_on(replica)
        if journal is None or journal is not self._journal or replica.is_gone:
            delete([path])
        else:
            delete(journal.saved(position, path))

    async def write_on(self, replica: Replica) -> tuple[Path, int]:
        """Have a replica write the stream's next file; returns its path and the stream's position.

        Raises:
            NoAnswerError, OSError: as `save_on`.
        """
        path = self.next_path()
        try:
            return path, await replica.call("save", self.key, str(path))
        except BaseException:
            delete([path, *path.parent.glob(f".{path.name}.*")])
            raise

    def next_path(self) -> Path:
        """A new path for the stream's next file."""
        self._version += 1
        return self._folder / f"{self.name}-{self._version}.safetensors"

    def forget_ahead(self) -> None:
        """Drop saves that are ahead of what was acknowledged: their replica is gone."""
        if self._journal is not None:
            delete(self._journal.forget_ahead())

    def note_withdrawal(self) -> None:
        """Note that an append was broken off. A save that was made meanwhile, or still is, may have
        tokens that were taken back, and would count once the stream is long enough."""
        self.forget_ahead()
        self._journal = replace(self.journal)

    def end(self) -> None:
        """Remove the stream's files."""
        self.forget_ahead()
        if self._journal is not None and self._journal.path is not None:
            delete([self._journal.path])


def delete(paths: Iterable[Path]) -> None:
    """Remove files, if they are still there."""
    for path in paths:
        path.unlink(missing_ok=True)
