"""What to write instead of a setting that does not exist: names of other engines, and typing
errors."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown_setting(owner: str, name: str, known: Collection[str], hints: Mapping[str, str]) -> str:
    """The message for a setting that ``owner`` does not have.

    Args:
        known: the settings that it has.
        hints: for names that users may know from elsewhere, what to do instead.
    """
    message = f"{owner} has no setting {name!r}"
    if name in hints:
        return f"{message}: {hints[name]}"
    if match := similar(name, known):
        return f"{message}; did you mean {match!r}?"
    return f"{message}; it has {', '.join(sorted(known))}"


def similar(name: str, known: Collection[str]) -> str | None:
    """The known name that was perhaps meant: window_size for windowSize, window-size or
    windowsize."""
    plain = {setting.replace("_", ""): setting for setting in known}
    word = name.lower().replace("_", "").replace("-", "")
    matches = difflib.get_close_matches(word, plain, n=1, cutoff=0.75)
    return plain[matches[0]] if matches else None


def explains_settings(hints: Mapping[str, str], *, example: str) -> Callable[[type[T]], type[T]]:
    """Let the constructor of a keyword-only dataclass explain unknown and nameless arguments.

    Args:
        hints: as in `unknown_setting`.
        example: an argument as it should be written.
    """

    def decorate(cls: type[T]) -> type[T]:
        construct: Callable[..., None] = vars(cls)["__init__"]
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

        @functools.wraps(construct)
        def explained(self: T, *args: Any, **settings: Any) -> None:
            if args:
                raise TypeError(
                    f"{cls.__name__} takes every setting by its name, as in "
                    f"{cls.__name__}({example}), got {args[0]!r}"
                )
            for name in settings:
                if name not in known:
                    raise TypeError(unknown_setting(cls.__name__, name, known, hints))
            construct(self, **settings)

        setattr(cls, "__init__", explained)  # noqa: B010 (mypy refuses the assignment)
        return cls

    return decorate
