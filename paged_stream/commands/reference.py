"""The reference of the command line in Markdown, made from the commands and their settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from paged_stream.commands.all_commands import COMMANDS
from paged_stream.commands.command import Command
from paged_stream.commands.options import SettingsGroup, allowed, default_words, flag, plain
from paged_stream.commands.settings import CLASSES
from paged_stream.scheduler.settings import settings_of


def command_reference() -> Iterator[str]:
    """Yield the lines of a section per command and one per class of settings."""
    for command in COMMANDS:
        yield from _command(command)
    for cls in CLASSES:
        yield from (f"## Settings: {cls.__name__}", "", *settings_table(cls), "")


def settings_table(cls: type[Any]) -> Iterator[str]:
    """Yield the lines of a table of all settings of a class, such as `EngineConfig`."""
    yield from ("| field | what it is | values | default |", "|---|---|---|---|")
    for name, setting in settings_of(cls).items():
        text = plain(setting.help, r"`\1`").replace("|", "\\|")
        default = f"`{default_words(setting)}`"
        yield f"| `{name}` | {text} | {allowed(setting)} | {default} |"


def _command(command: Command) -> Iterator[str]:
    yield from (f"## {command.name}", "", command.description, "")
    yield from ("```sh", *command.example.splitlines(), "```", "")
    for group in command.groups:
        yield f"- {_group(group)}"
    yield ""
    parser = argparse.ArgumentParser(add_help=False)
    command.add_options(parser)
    if parser._actions:
        yield from ("| option | what it is |", "|---|---|")
        yield from (_own_option(action) for action in parser._actions)
        yield ""


def _group(group: SettingsGroup) -> str:
    """Which settings of a class a command takes, and with which defaults of its own."""
    every = {name: each for name, each in settings_of(group.cls).items() if each.on_command_line}
    left_out = [f"`{flag(name)}`" for name in every if name not in group.settings]
    text = f"{group.title}: the settings of `{group.cls.__name__}`"
    if len(left_out) > len(group.settings):
        text = f"{group.title}: {', '.join(f'`{group.label(name)}`' for name in group.settings)}"
    elif left_out:
        text += f", but not {', '.join(left_out)}"
    own = [
        f"`{group.label(name)} {default_words(each)}`"
        for name, each in group.settings.items()
        if each.default != every[name].default
    ]
    return text + (f"; by default {', '.join(own)}" if own else "")


def _own_option(action: argparse.Action) -> str:
    metavar = str(action.metavar or action.dest.upper())
    words = f" {metavar}" if action.nargs != 0 else ""
    names = [f"`{name}{words}`" for name in action.option_strings] or [f"`{metavar}`"]
    text = (action.help or "") % {"default": action.default}
    return f"| {', '.join(names)} | {text} |".replace("\n", " ")
