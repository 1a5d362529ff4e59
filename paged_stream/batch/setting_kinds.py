"""Kinds of the fields of `BatchConfig`: places, columns, and how many errors are too many."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from paged_stream.scheduler.fields import Kind, Words
from paged_stream.scheduler.word_fields import Texts


@dataclass(frozen=True, slots=True)
class Inputs(Texts):
    """Paths or URIs: one, or a list of them."""

    words: ClassVar[Words] = "several"
    metavar: ClassVar[str] = "PATH"

    @property
    def allowed(self) -> str:
        return "paths, patterns or URIs"

    def _check(self, name: str, value: Any) -> tuple[str, ...]:
        paths = [value] if isinstance(value, str | os.PathLike) else value
        if not isinstance(paths, Sequence) or not paths or not all(map(str, paths)):
            raise ValueError(f"{name} must be a path or URI or a list of them, got {value!r}")
        return tuple(expanded(str(path)) for path in paths)


@dataclass(frozen=True, slots=True)
class Output(Kind):
    """A folder, as path or URI, that means the same in every process."""

    metavar: ClassVar[str] = "FOLDER"

    @property
    def allowed(self) -> str:
        return "a folder or URI"

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str | os.PathLike) or not str(value):
            raise ValueError(f"{name} must be a folder or URI, got {value!r}")
        return absolute(str(value))


@dataclass(frozen=True, slots=True)
class Columns(Texts):
    """Names of columns: one, or a list of them."""

    words: ClassVar[Words] = "several"
    metavar: ClassVar[str] = "COLUMN"

    @property
    def allowed(self) -> str:
        return "names of columns"


@dataclass(frozen=True, slots=True)
class Renames(Kind):
    """New names of columns by the old ones, or a list of texts ``old=new``."""

    words: ClassVar[Words] = "several"
    metavar: ClassVar[str] = "OLD=NEW"
    json_type: ClassVar[Any] = dict[str, str]

    @property
    def allowed(self) -> str:
        return "old=new"

    def _check(self, name: str, value: Any) -> dict[str, str]:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
            value = dict(item.partition("=")[::2] for item in value)
        names = [*value, *value.values()] if isinstance(value, Mapping) else [""]
        if not all(isinstance(item, str) and item for item in names):
            raise ValueError(f"{name} must be new names of columns by old ones, got {value!r}")
        return dict(value)

    def _parse(self, text: str) -> list[str]:
        return [text]


@dataclass(frozen=True, slots=True)
class ErrorLimit(Kind):
    """A number of rows as an int, or a share of all rows as a float or text such as ``1%``."""

    metavar: ClassVar[str] = "N|P%"

    @property
    def allowed(self) -> str:
        return "a count such as 100 or a share such as 1%"

    def _check(self, name: str, value: Any) -> int | float:
        number = value
        if isinstance(value, str) and re.fullmatch(r"[0-9]+", value):
            number = int(value)
        elif isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?%", value):
            number = float(value[:-1]) / 100
        is_number = isinstance(number, Real) and not isinstance(number, bool)
        if is_number and isinstance(number, Integral) and int(number) >= 0:
            return int(number)
        if is_number and not isinstance(number, Integral) and 0 <= float(number) <= 1:
            return float(number)
        raise ValueError(f"{name} must be {self.allowed}{self._or_none}, got {value!r}")


def expanded(path: str) -> str:
    """A path without ``~``; a URI as it is."""
    return path if "://" in path else os.path.expanduser(path)


def absolute(path: str) -> str:
    """A path that means the same in every process; a URI as it is."""
    return path if "://" in path else os.path.abspath(expanded(path))
