"""The command line: ``paged-stream generate | chat | batch | serve | info | models`` and
the evaluations."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from paged_stream.commands.all_commands import COMMANDS
from paged_stream.commands.command import Parser
from paged_stream.commands.settings import complete
from paged_stream.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 for wrong use; 130 after Ctrl-C; 1 if nobody reads the output any more.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    with _messages():
        try:
            complete(args, args.command.groups, os.environ)
            status: int = args.command.run(args)
            return status
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
            return 1
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it parses has ``command``, a `Command` or ``None``."""
    parser = Parser(prog="paged-stream", description="Language models on text that never ends.")
    parser.add_argument("--version", action="version", version=f"paged-stream {__version__}")
    parser.set_defaults(command=None, config=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


@contextmanager
def _messages() -> Iterator[None]:
    """Show warnings, and what is done to a model before it can be used, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    everything, models = logging.getLogger("paged_stream"), logging.getLogger("paged_stream.models")
    level = models.level
    everything.addHandler(handler)
    models.setLevel(logging.INFO)
    try:
        yield
    finally:
        everything.removeHandler(handler)
        models.setLevel(level)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"
