"""The options of every command as Markdown, from the parser of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from paged_stream.cli import _parser


def command_reference() -> Iterator[str]:
    """Lines of Markdown: a section per command, with description, example and tables of options."""
    [subparsers] = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in subparsers.choices.items():
        yield from (f"## {name}", "", parser.description or "", "")
        example = (parser.epilog or "").removeprefix("example:\n").split("\n\n")[0]
        yield from ("```sh", *(line.strip() for line in example.splitlines()), "```", "")
        for group in parser._action_groups:
            actions = [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]
            if actions:
                title = (group.title or "").capitalize()
                yield from (f"**{title}**", "", "| option | what it does |", "|---|---|")
                yield from (f"| {_written(a)} | {_explained(a)} |" for a in actions)
                yield ""


def _written(action: argparse.Action) -> str:
    """An option as it is written, with a name for its value."""
    value = action.metavar or action.dest.upper()
    value = value if isinstance(value, str) else " ".join(value)
    if action.nargs == "+":
        value += " ..."
    names = [
        f"`{name}`" if action.nargs == 0 else f"`{name} {value}`" for name in action.option_strings
    ]
    return ", ".join(names or [f"`{value}`"])


def _explained(action: argparse.Action) -> str:
    """The help, and the default where the help does not tell it."""
    text = (action.help or "") % (vars(action) | {"prog": "paged-stream"})
    text = text.replace("|", "\\|").replace("{{", "&#123;{")
    default = action.default
    if default in (None, False, argparse.SUPPRESS) or action.nargs == 0 or "default" in text:
        return text
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return text if shown in text else f"{text} (default: {shown})".lstrip()
