"""What a command is: a name, what it is for, its options, and what it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from paged_stream.commands.options import SettingsGroup

SETTINGS_HELP = """\
settings:
  Options whose help ends with their default may also be set in a YAML or JSON file (--config FILE),
  as in `window_size: 1024`, and in the environment, as in PAGED_STREAM_WINDOW_SIZE=1024. Options go
  before the environment, the environment before the file."""


def no_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: all options of the command are settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of ``paged-stream``.

    Args:
        description: what it is for. The first sentence stands in the list of commands.
        example: command lines, each on a line.
        groups: settings that it takes.
        arguments: those without a name, for the line of usage.
        run: does it; returns the exit status. The namespace has every setting, checked, and what
            ``add_options`` has added. It may raise ValueError, OSError and ImportError.
        add_options: adds what it takes beside the settings.
    """

    name: str
    description: str
    example: str
    groups: Sequence[SettingsGroup]
    arguments: str = ""
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None] = no_options

    def add_to(self, commands: Any) -> None:
        """Add the command's parser."""
        epilog = "example:\n  " + self.example.replace("\n", "\n  ")
        parser: argparse.ArgumentParser = commands.add_parser(
            self.name,
            usage=f"paged-stream {self.name} [OPTION ...] {self.arguments}".rstrip(),
            help=self.description.split(". ")[0].rstrip("."),
            description=self.description,
            epilog=f"{epilog}\n\n{SETTINGS_HELP}" if self.groups else epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_options(parser)
        for group in self.groups:
            group.add_to(parser)
        if self.groups:
            parser.add_argument(
                "--config", type=Path, metavar="FILE", help="settings in YAML or JSON, see below"
            )
        parser.set_defaults(command=self)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which takes options by their whole names only."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")
