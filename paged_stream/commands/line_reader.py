"""Lines that a person types: edited and remembered on a terminal, plain from anywhere else."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# From what stands before the line to the line. EOFError and KeyboardInterrupt are the user's.
ReadLine = Callable[[str], str]


def history_path() -> Path:
    """Where the history is kept: ``$XDG_STATE_HOME/paged_stream/chat_history``, by default under
    ``~/.local/state``."""
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "paged_stream" / "chat_history"


def line_reader(commands: Sequence[str]) -> ReadLine:
    """Choose how lines are read.

    Args:
        commands: that the tabulator completes.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return input
    if importlib.util.find_spec("prompt_toolkit") is None:
        logger.warning(
            "lines are neither edited nor remembered without prompt_toolkit, which is an extra: "
            'pip install "paged-stream[chat]"'
        )
        return input
    return _edited(commands)


def _edited(commands: Sequence[str]) -> ReadLine:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    session: Any = PromptSession(
        history=_history(),
        # Several lines, so that a pasted text is one message.
        multiline=True,
        key_bindings=_keys(),
        prompt_continuation="",
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
    )

    def read(before: str) -> str:
        line: str = session.prompt(before)
        return line

    return read


def _keys() -> Any:
    """Enter sends a message, Alt-Enter begins a new line in it."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    return keys


def _history() -> Any:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what people say to a model is their own
        path.open("a").close()
    except OSError as error:
        logger.warning("the history is not kept (XDG_STATE_HOME says where): %s", error)
        return InMemoryHistory()
    return FileHistory(str(path))
