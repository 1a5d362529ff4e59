"""The prompt of a row: taken from its column or written by a template, and tokenized."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paged_stream.batch.row_task import RowTask, compile_template
from paged_stream.text.chat import is_messages
from paged_stream.text.inputs import plain_prompt

if TYPE_CHECKING:
    import jinja2

    from paged_stream.text.tokenizer import Tokenizer


class Prompter:
    """Takes the prompts of one task out of rows."""

    def __init__(self, task: RowTask) -> None:
        self.task = task
        template = task.prompt_template
        self._template = None if template is None else compile_template(template)
        self._columns = task.prompt_columns

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """The prompt of a row: text, messages, or a list that should be token ids.

        Raises:
            ValueError: the row has none.
        """
        if self._template is not None:
            value: Any = _render(self._template, row_values(row, self._columns))
        else:
            name = self.task.input_column
            if name not in row:
                raise ValueError(f"no column {name!r} in {', '.join(map(repr, row)) or 'the row'}")
            value = row_values(row, (name,))[name]
        if isinstance(value, bytes):
            value = value.decode()  # UnicodeDecodeError is a ValueError
        if isinstance(value, Mapping):
            value = plain_prompt(value)  # type: ignore[arg-type]  # which refuses what is none
        self._check(value)
        if self.task.task == "chat" and isinstance(value, str):
            return [{"role": "user", "content": value}]
        return value

    def _check(self, value: Any) -> None:
        where = "prompt_template" if self._template else f"column {self.task.input_column!r}"
        if isinstance(value, str):
            if not value:
                raise ValueError(f"{where} is empty")
            if len(value) > self.task.max_row_bytes:
                raise ValueError(f"{where} is larger than max_row_bytes={self.task.max_row_bytes}")
        elif self.task.task == "chat":
            if not is_messages(value):
                raise ValueError(f"{where} must be messages or text, got {_describe(value)}")
        elif not isinstance(value, list):
            raise ValueError(f"{where} must be text or token ids, got {_describe(value)}")


def encode(tokenizer: Tokenizer | None, prompt: Any) -> Sequence[int]:
    """The tokens of what `Prompter.prompt` gives; token ids as they are, for the engine to check.

    Raises:
        ValueError: there is no tokenizer, or it or its chat template does not take the prompt.
    """
    if not isinstance(prompt, str) and not is_messages(prompt):
        ids: Sequence[int] = prompt
        return ids
    if tokenizer is None:
        raise ValueError("the row has text, but the model has no tokenizer; give it token ids")
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    return tokenizer.apply_chat_template(prompt)


def row_values(row: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Some columns of a row. The others stay as they are: Python need not know their values.

    Raises:
        ValueError: Python has no such value.
    """
    try:
        return {name: row[name] for name in names if name in row}
    except (OverflowError, TypeError) as error:
        raise ValueError(f"{', '.join(names)}: Python has no such value: {error}") from None


def _render(template: jinja2.Template, row: Mapping[str, Any]) -> str:
    try:
        return template.render(row)
    except Exception as error:  # whatever a template's expressions raise on this row
        raise ValueError(f"prompt_template: {error}") from None


def _describe(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:80]!r}"
