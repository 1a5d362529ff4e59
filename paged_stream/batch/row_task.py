"""What is asked of each row, and which columns it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from paged_stream.scheduler.fields import as_int
from paged_stream.scheduler.sampling_params import SamplingParams

if TYPE_CHECKING:
    import jinja2

Task = Literal["generate", "score", "embed", "chat", "openai"]
TASKS = get_args(Task)
WRITING_TASKS = ("generate", "chat", "openai")
_DEFAULT_COLUMN = {"generate": "prompt", "score": "text", "embed": "text", "chat": "messages"}
# The columns of OpenAI's batch file.
REQUEST = ("custom_id", "method", "url", "body")
FLOATS = "floats"
_GENERATED = {"generated_text": "string", "finish_reason": "string"}
_ADDED = {
    "generate": _GENERATED,
    "chat": _GENERATED,
    "score": {"log_likelihood": "double", "perplexity": "double"},
    "embed": {"embedding": FLOATS},
    "openai": {"id": "string", "response": "json", "error": "json"},
}
_USAGE = {"prompt_tokens": "int64", "output_tokens": "int64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTask:
    """A task, the same for all rows.

    Args:
        task: as in `BatchConfig`, and so are the others.
        sampling_params: what rows do not say themselves. Its seed, with a row's key, makes the
            row's own.
        max_row_bytes: largest prompt.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    task: Task
    prompt_column: str | None = None
    prompt_template: str | None = None
    sampling_params: SamplingParams
    sampling_columns: tuple[str, ...] = ()
    max_row_bytes: int = 64 << 20
    dedup: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.prompt_column is not None and self.prompt_template is not None:
            raise ValueError("prompt_column and prompt_template must not both be given")
        if self.prompt_template is not None:
            compile_template(self.prompt_template)
        if self.task == "openai" and (self.prompt_column or self.prompt_template):
            raise ValueError(
                "task='openai' takes no prompt_column and no prompt_template; a row has the "
                f"columns {', '.join(REQUEST)}"
            )
        if self.task not in ("generate", "chat") and self.sampling_columns:
            raise ValueError(
                f"sampling_columns must be left out of task={self.task!r}, "
                f"got {', '.join(self.sampling_columns)}"
            )
        if self.task == "openai" and self.dedup:
            raise ValueError("dedup must be left out of task='openai', whose answers have ids")
        check_row_params(self.sampling_params)
        as_int("max_row_bytes", self.max_row_bytes, 1)

    @property
    def input_column(self) -> str:
        """The column that has the prompt, if no template writes it and rows are no requests."""
        return self.prompt_column or _DEFAULT_COLUMN[self.task]

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """All columns that prompts are made of."""
        if self.task == "openai":
            return REQUEST
        if self.prompt_template is None:
            return (self.input_column,)
        from jinja2 import meta

        environment = _environment()
        names = meta.find_undeclared_variables(environment.parse(self.prompt_template))
        return tuple(sorted(names - set(environment.globals)))

    @property
    def columns(self) -> dict[str, str]:
        """Arrow types of what is added to a row; ``"json"`` is any JSON value, `FLOATS` a list of
        float32."""
        return _ADDED[self.task] | _USAGE


def check_row_params(params: SamplingParams) -> None:
    """Refuse parameters that the output of a row has no place for.

    Raises:
        ValueError: names the field.
    """
    if params.max_tokens is None:
        raise ValueError("max_tokens must be an int, got None: one row could run for ever")
    if params.n != 1 or params.logprobs is not None or params.prompt_logprobs is not None:
        raise ValueError(
            "a batch takes n=1 and no logprobs; task='score' gives likelihoods, and requests of "
            "task='openai' may have both"
        )
    if params.logits_processors:
        raise ValueError("a batch takes no logits_processors: a run is resumed by its settings")


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
