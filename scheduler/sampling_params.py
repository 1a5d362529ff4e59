"""What a request asks of the sampler; every field is checked where it enters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from .fields import as_bool, as_float, as_int, changes_repr, keep
from .hints import explains_settings

MAX_COMPLETIONS = 1024  # of one prompt: all of them are made in one step
_LARGEST_INT = (1 << 63) - 1
_NO_BEAMS = "there is no beam search; n samples several completions"
_ENGINE = "it belongs to EngineConfig, LLM and open_stream"
_HINTS = {
    "max_new_tokens": "write max_tokens",
    "max_completion_tokens": "write max_tokens",
    "max_length": "write max_tokens, which does not count the prompt",
    "min_new_tokens": "write min_tokens",
    "min_length": "write min_tokens, which does not count the prompt",
    "do_sample": "temperature=0 is greedy, anything above samples",
    "num_return_sequences": "write n",
    "best_of": "n gives several completions to choose from; examples/best_of_n.py shows how",
    "use_beam_search": _NO_BEAMS,
    "num_beams": _NO_BEAMS,
    "beam_width": _NO_BEAMS,
    "length_penalty": _NO_BEAMS,
    "early_stopping": _NO_BEAMS,
    "eos_token_id": "write stop_token_ids; the model's own end tokens count anyway",
    "pad_token_id": "nothing is padded; leave it out",
    "stop_strings": "write stop",
    "stop_sequences": "write stop",
    "include_stop_str_in_output": "the text ends before the stop string; append it yourself",
    "skip_special_tokens": "texts never show special tokens; token_ids hold them",
    "repeat_penalty": "write repetition_penalty",
    "no_repeat_ngram_size": "write repetition_penalty or frequency_penalty",
    "random_seed": "write seed",
    "truncate_prompt_tokens": "prompts may be of any length; shorten them yourself if you like",
    "window_size": _ENGINE,
    "num_sink_tokens": _ENGINE,
}


def _as_tuple(values: object) -> tuple[object, ...] | None:
    """Items of a list or another sequence; ``None`` if it is none."""
    if values is None:
        return ()
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return None
    return tuple(values)


def _as_stop(name: str, value: object) -> tuple[object, ...]:
    stop = (value,) if isinstance(value, str) else _as_tuple(value)
    if stop is None or not all(isinstance(item, str) and item for item in stop):
        raise ValueError(f"{name} must be a non-empty string or a list of them, got {value!r}")
    return stop


def _as_token_ids(name: str, value: object) -> tuple[int, ...]:
    try:
        items = _as_tuple(value)
        if items is not None:
            return tuple(as_int(name, item, 0) for item in items)
    except ValueError:
        pass
    raise ValueError(f"{name} must be a list of ints >= 0, got {value!r}")


@explains_settings(_HINTS, example="temperature=0.8")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SamplingParams:
    """Sampling parameters, with vLLM's names and meanings.

    Args:
        n: completions per prompt, 1,024 at most.
        temperature: 0 (or anything below 1e-5) is greedy.
        top_p: keep the smallest set of tokens whose probabilities sum to at least ``top_p``.
        top_k: keep the ``top_k`` most likely tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than ``min_p`` times the most likely one.
        presence_penalty: subtracted once from the logit of each token already generated.
        frequency_penalty: subtracted per occurrence of each token already generated.
        repetition_penalty: divides (or multiplies, if negative) the logits of tokens already in
            the prompt or the output; 1 is off. All three penalties look at the tokens that are
            still visible: what has left the window is not penalised.
        max_tokens: tokens to generate; ``None`` goes on until something else stops the request: a
            stop token or string, or, without a window, the trained length. A chat without
            parameters has ``None``.
        min_tokens: no stop token is sampled before this many tokens.
        stop: strings that end the output; the text ends before the string.
        stop_token_ids: token ids that end the output, besides the model's own.
        ignore_eos: do not stop at the model's end-of-sequence tokens.
        logprobs: report the log-probability of each sampled token and of this many most likely
            ones, before penalties and temperature. ``None`` reports nothing.
        prompt_logprobs: the same for the prompt's tokens, given those visible before them.
        seed: makes the request's random choices its own, whatever else runs beside it.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Seq[str] | None = ()
    stop_token_ids: Seq[int] | None = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        keep(self, "n", as_int, 1, MAX_COMPLETIONS)
        keep(self, "temperature", as_float, 0.0)
        keep(self, "top_p", as_float, 0.0, 1.0, open_low=True)
        keep(self, "top_k", as_int, -1, _LARGEST_INT)
        keep(self, "min_p", as_float, 0.0, 1.0)
        keep(self, "presence_penalty", as_float, -2.0, 2.0)
        keep(self, "frequency_penalty", as_float, -2.0, 2.0)
        keep(self, "repetition_penalty", as_float, 0.01, 100.0)
        keep(self, "max_tokens", as_int, 1, optional=True)
        keep(self, "min_tokens", as_int, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be <= max_tokens ({self.max_tokens}), got {self.min_tokens}"
            )
        keep(self, "logprobs", as_int, 0, optional=True)
        keep(self, "prompt_logprobs", as_int, 0, optional=True)
        keep(self, "seed", as_int, optional=True)
        keep(self, "ignore_eos", as_bool)
        keep(self, "stop", _as_stop)
        keep(self, "stop_token_ids", _as_token_ids)

    __repr__ = changes_repr

    @property
    def greedy(self) -> bool:
        # Dividing by less than this leaves the range of float32.
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


def whole_answer(params: SamplingParams | None) -> SamplingParams:
    """The parameters of an answer in a conversation: without any, it ends where the model ends its
    turn."""
    return SamplingParams(max_tokens=None) if params is None else params


def check_params_type(params: object) -> None:
    """Refuse what is no `SamplingParams`.

    Raises:
        ValueError: says how to write it.
    """
    if isinstance(params, SamplingParams):
        return
    hint = "pass SamplingParams(...)"
    if isinstance(params, Mapping) and all(str(name).isidentifier() for name in params):
        arguments = ", ".join(f"{name}={value!r}" for name, value in params.items())
        hint = f"write SamplingParams({arguments})"
    raise ValueError(f"params must be SamplingParams, got {params!r}; {hint}")
