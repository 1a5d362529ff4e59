"""What is asked of each row, and what it gets: a request for the engine, columns for the output."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.outputs import RequestDelta
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import is_messages

if TYPE_CHECKING:
    import jinja2

TASKS = ("generate", "score", "chat")
_DEFAULT_COLUMN = {"generate": "prompt", "score": "text", "chat": "messages"}
_GENERATED = {"generated_text": "string", "finish_reason": "string"}
_SCORED = {"log_likelihood": "double", "perplexity": "double"}
_USAGE = {"prompt_tokens": "int64", "output_tokens": "int64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTask:
    """A task, the same for all rows.

    Args:
        kind: ``"generate"`` (text that follows), ``"score"`` (log-likelihood of a text of any
            length) or ``"chat"`` (the answer to a conversation).
        column: where a row has its prompt: text, token ids, or for a chat messages or one message
            of the user as text. ``None`` is ``prompt``, ``text`` or ``messages``.
        template: a Jinja template over all columns that writes the prompt instead.
        params: how to generate. Its seed, with a row's key, makes the row's own.
        max_row_bytes: largest prompt.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    kind: str
    column: str | None = None
    template: str | None = None
    params: SamplingParams
    max_row_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.kind!r}")
        if self.column is not None and self.template is not None:
            raise ValueError("prompt_column and prompt_template must not both be given")
        if self.template is not None:
            compile_template(self.template)
        params = self.params
        if params.max_tokens is None:
            raise ValueError("max_tokens must be an int, got None: one row could run for ever")
        if params.n != 1 or params.logprobs is not None or params.prompt_logprobs is not None:
            raise ValueError("a batch takes n=1 and no logprobs; task='score' gives likelihoods")
        if type(self.max_row_bytes) is not int or self.max_row_bytes < 1:
            raise ValueError(f"max_row_bytes must be an int >= 1, got {self.max_row_bytes!r}")

    @property
    def input_column(self) -> str:
        return self.column or _DEFAULT_COLUMN[self.kind]

    @property
    def columns(self) -> dict[str, str]:
        """Arrow types of what is added to a row."""
        return (_SCORED if self.kind == "score" else _GENERATED) | _USAGE


class Prompter:
    """Takes the prompts of one task out of rows."""

    def __init__(self, task: RowTask) -> None:
        self.task = task
        self._template = None if task.template is None else compile_template(task.template)

    def encode(self, engine: LLMEngine, row: Mapping[str, Any]) -> list[int]:
        """The prompt of a row as token ids.

        Raises:
            ValueError: the row has none, or none that the model takes.
        """
        value = self.prompt(row)
        if is_messages(value):
            value = engine.chat_tokenizer().apply_chat_template(value)
        return engine.encode(value)

    def prompt(self, row: Mapping[str, Any]) -> Any:
        """The prompt of a row.

        Raises:
            ValueError: the row has none.
        """
        if self._template is not None:
            value: Any = _render(self._template, row)
        else:
            name = self.task.input_column
            if name not in row:
                raise ValueError(f"no column {name!r} in {', '.join(map(repr, row)) or 'the row'}")
            value = row[name]
        if isinstance(value, bytes):
            value = value.decode()  # UnicodeDecodeError is a ValueError
        self._check(value)
        if self.task.kind == "chat" and isinstance(value, str):
            return [{"role": "user", "content": value}]
        return value

    def _check(self, value: Any) -> None:
        where = "prompt_template" if self._template else f"column {self.task.input_column!r}"
        if isinstance(value, str):
            if not value:
                raise ValueError(f"{where} is empty")
            if len(value) > self.task.max_row_bytes:
                raise ValueError(f"{where} is larger than max_row_bytes={self.task.max_row_bytes}")
            return
        if self.task.kind == "chat":
            if not is_messages(value):
                raise ValueError(f"{where} must be messages or text, got {_describe(value)}")
        elif not isinstance(value, list) or not all(type(item) is int for item in value):
            raise ValueError(f"{where} must be text or token ids, got {_describe(value)}")


def _render(template: jinja2.Template, row: Mapping[str, Any]) -> str:
    try:
        return template.render(dict(row))
    except Exception as error:  # whatever a template's expressions raise on this row
        raise ValueError(f"prompt_template: {error}") from None


def _describe(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:80]!r}"


def compile_template(template: str) -> jinja2.Template:
    """A Jinja template in a sandbox, where a missing column is an error.

    Raises:
        ValueError: it is no template.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"prompt_template: {error}") from None


def row_seed(seed: int, *key: object) -> int:
    """The seed of one row's sampling: a function of the run's and the row's key."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class RowRequest:
    """One row's request while the engine runs it."""

    __slots__ = ("_log_likelihood", "_num_output", "_num_prompt", "_prompter", "_reason", "_text")

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter
        self._text: list[str] = []
        self._reason: str | None = None
        self._num_prompt = self._num_output = 0
        self._log_likelihood = 0.0

    def start(
        self, engine: LLMEngine, request_id: str, row: Mapping[str, Any], key: Sequence[object]
    ) -> None:
        """Queue the row's request.

        Args:
            key: what its seed follows from, beside the run's; its token ids if there is none.

        Raises:
            ValueError: the row is a bad one.
        """
        task = self._prompter.task
        token_ids = self._prompter.encode(engine, row)
        if task.kind == "score":
            engine.add_score_request(request_id, token_ids)
        else:
            params = replace(task.params, seed=row_seed(task.params.seed or 0, *(key or token_ids)))
            engine.add_encoded_request(request_id, token_ids, params)
        self._num_prompt = len(token_ids)

    def add(self, delta: RequestDelta) -> None:
        """Take in what a step added."""
        if delta.delta_text:
            self._text.append(delta.delta_text)
        self._num_output += len(delta.delta_token_ids)
        for entry in delta.prompt_logprobs or ():
            self._log_likelihood += entry.logprob
        self._reason = delta.finish_reason

    def columns(self) -> dict[str, Any]:
        """What `RowTask.columns` names, once finished."""
        usage = {"prompt_tokens": self._num_prompt, "output_tokens": self._num_output}
        if self._prompter.task.kind != "score":
            text = "".join(self._text)
            return {"generated_text": text, "finish_reason": self._reason} | usage
        mean = -self._log_likelihood / (self._num_prompt - 1)
        perplexity = math.exp(mean) if mean < 700 else math.inf
        return {"log_likelihood": self._log_likelihood, "perplexity": perplexity} | usage
