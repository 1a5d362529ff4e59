"""What is asked of each row, and which columns it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from paged_stream.scheduler.fields import as_int
from paged_stream.scheduler.sampling_params import SamplingParams

if TYPE_CHECKING:
    import jinja2

Task = Literal["generate", "score", "embed", "chat"]
TASKS = get_args(Task)
WRITING_TASKS = ("generate", "chat")
_DEFAULT_COLUMN = {"generate": "prompt", "score": "text", "embed": "text", "chat": "messages"}
_GENERATED = {"generated_text": "string", "finish_reason": "string"}
_FLOATS = "list of float32"
_ADDED = {
    "generate": _GENERATED,
    "chat": _GENERATED,
    "score": {"log_likelihood": "double", "perplexity": "double"},
    "embed": {"embedding": _FLOATS},
}
_USAGE = {"prompt_tokens": "int64", "output_tokens": "int64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTask:
    """A task, the same for all rows.

    Args:
        task: as in `BatchConfig`, and so are the others.
        sampling_params: its seed, with a row's key, makes the row's own.
        max_row_bytes: largest prompt.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    task: Task
    prompt_column: str | None = None
    prompt_template: str | None = None
    sampling_params: SamplingParams
    max_row_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.prompt_column is not None and self.prompt_template is not None:
            raise ValueError("prompt_column and prompt_template must not both be given")
        if self.prompt_template is not None:
            compile_template(self.prompt_template)
        params = self.sampling_params
        if params.max_tokens is None:
            raise ValueError("max_tokens must be an int, got None: one row could run for ever")
        if params.n != 1 or params.logprobs is not None or params.prompt_logprobs is not None:
            raise ValueError("a batch takes n=1 and no logprobs; task='score' gives likelihoods")
        if params.logits_processors:
            raise ValueError("a batch takes no logits_processors: a run is resumed by its settings")
        as_int("max_row_bytes", self.max_row_bytes, 1)

    @property
    def input_column(self) -> str:
        """The column that has the prompt, if no template writes it."""
        return self.prompt_column or _DEFAULT_COLUMN[self.task]

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """All columns that prompts are made of."""
        if self.prompt_template is None:
            return (self.input_column,)
        from jinja2 import meta

        environment = _environment()
        names = meta.find_undeclared_variables(environment.parse(self.prompt_template))
        return tuple(sorted(names - set(environment.globals)))

    @property
    def columns(self) -> dict[str, str]:
        """What is added to a row, each with its type, as `arrow_type` reads it."""
        return _ADDED[self.task] | _USAGE


def arrow_type(kind: str) -> Any:
    """The type of a column that is added."""
    import pyarrow as pa

    return pa.list_(pa.float32()) if kind == _FLOATS else pa.type_for_alias(kind)


def _environment() -> jinja2.Environment:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)


def compile_template(template: str) -> jinja2.Template:
    """A Jinja template in a sandbox, where a missing column is an error.

    Raises:
        ValueError: it is no template.
    """
    import jinja2

    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"prompt_template: {error}") from None
