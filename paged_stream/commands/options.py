"""Options that come from settings: the fields of a class become options of a command.

A `SettingsGroup` is all that a command says of them: which class, without which fields, with which
defaults of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.models.formats.resolve import EMBEDDED_MODEL
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import Setting, settings_of


@dataclass(frozen=True, slots=True)
class SettingsGroup:
    """Fields of a class of settings that a command takes.

    Args:
        title: of the options in ``--help``.
        cls: the class of settings.
        settings: the fields by name; their defaults are the command's.
        positional: the field that is an argument without a name, if there is one.
    """

    title: str
    cls: type[Any]
    settings: Mapping[str, Setting]
    positional: str | None = None

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add an option for each field. What is not given on the command line is not in the
        namespace; `paged_stream.commands.settings.complete` adds it."""
        group = parser.add_argument_group(self.title)
        for name, setting in self.settings.items():
            how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": option_help(setting)}
            words = setting.kind.words
            if words == "switch":
                how |= {"action": argparse.BooleanOptionalAction}
            else:
                how |= {"metavar": setting.kind.metavar}
            if words == "repeated":
                how |= {"action": "append"}
            elif words == "several":
                how |= {"action": "extend", "nargs": "+"}
            if name == self.positional:
                parser.add_argument(name, nargs="?", **how)
            else:
                group.add_argument(flag(name), dest=name, **how)

    def label(self, name: str) -> str:
        """What messages call a field of the command line."""
        return self.settings[name].kind.metavar if name == self.positional else flag(name)

    def read(self, args: argparse.Namespace) -> dict[str, Any]:
        """The values of the fields, as keyword arguments for the class."""
        return {name: getattr(args, name) for name in self.settings}


def settings_group(
    title: str,
    cls: type[Any],
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    positional: str | None = None,
) -> SettingsGroup:
    """Group the fields of a class that commands may have.

    Args:
        only: if given, these and no others.
        without: not these: what the command itself decides.
        defaults: those that are not the class's.
    """
    own = defaults or {}
    settings = {
        name: dataclasses.replace(setting, default=own.get(name, setting.default))
        for name, setting in settings_of(cls).items()
        if setting.on_command_line and name not in without and (only is None or name in only)
    }
    return SettingsGroup(title, cls, settings, positional)


def engine_group(
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    positional: str | None = None,
) -> SettingsGroup:
    """The group of `EngineConfig`, with a model that needs no download."""
    own = {"model": EMBEDDED_MODEL, **(defaults or {})}
    return settings_group(
        "engine", EngineConfig, only=only, without=without, defaults=own, positional=positional
    )


def sampling_group(**defaults: float) -> SettingsGroup:
    """The group of `SamplingParams`, with a command's own defaults."""
    return settings_group("sampling", SamplingParams, defaults=defaults)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def option_help(setting: Setting) -> str:
    """A field's help as a terminal shows it."""
    text = plain(setting.help, r"\1").replace("`", "").removesuffix(".")
    if setting.kind.words == "repeated":
        text += "; may be given several times"
    default = default_words(setting)
    default = default if default == "required" else f"default: {default}"
    return f"{text} ({allowed(setting)}; {default})".lstrip().replace("%", "%%")


def plain(text: str, literal: str) -> str:
    """A docstring's text as a user of the command line reads it.

    Args:
        literal: what becomes of an inline literal, whose text is ``\\1``.
    """
    return re.sub(r"``\"?(.*?)\"?``", literal, text.replace("``None``", "``none``"))


def allowed(setting: Setting) -> str:
    """Which values a field takes, in words."""
    words = setting.kind.allowed
    return words + (("," if "," in words else "") + " or none" if setting.kind.optional else "")


def default_words(setting: Setting) -> str:
    """A field's default as one would write it, or that there is none."""
    value = setting.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value == ():
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
