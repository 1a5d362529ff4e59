"""What a request asks of the sampler; every field is checked where it enters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

MAX_COMPLETIONS = 1024  # of one prompt: all of them are made in one step
_LARGEST = 1e30
_LARGEST_INT = (1 << 63) - 1


def _as_tuple(values: object) -> tuple[object, ...] | None:
    """Items of a list or another sequence; ``None`` if it is none."""
    if values is None:
        return ()
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return None
    return tuple(values)


@dataclass(frozen=True, slots=True, kw_only=True)
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
        max_tokens: tokens to generate; ``None`` goes on until something else stops the request.
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
    stop: str | Seq[str] | None = None
    stop_token_ids: Seq[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check_int("n", 1, MAX_COMPLETIONS)
        self._check_float("temperature", 0.0)
        self._check_float("top_p", 0.0, 1.0, open_low=True)
        self._check_int("top_k", -1, _LARGEST_INT)
        self._check_float("min_p", 0.0, 1.0)
        self._check_float("presence_penalty", -2.0, 2.0)
        self._check_float("frequency_penalty", -2.0, 2.0)
        self._check_float("repetition_penalty", 0.01, 100.0)
        self._check_int("max_tokens", 1, optional=True)
        self._check_int("min_tokens", 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be <= max_tokens ({self.max_tokens}), got {self.min_tokens}"
            )
        self._check_int("logprobs", 0, optional=True)
        self._check_int("prompt_logprobs", 0, optional=True)
        self._check_int("seed", None, optional=True)
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos must be a bool, got {self.ignore_eos!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else _as_tuple(self.stop)
        if stop is None or not all(isinstance(s, str) and s for s in stop):
            raise ValueError(
                f"stop must be a non-empty string or a list of them, got {self.stop!r}"
            )
        object.__setattr__(self, "stop", stop)
        ids = _as_tuple(self.stop_token_ids)
        if ids is None or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(
                f"stop_token_ids must be a list of ints >= 0, got {self.stop_token_ids!r}"
            )
        object.__setattr__(self, "stop_token_ids", ids)

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

    def _check_int(
        self, name: str, low: int | None, high: int | None = None, *, optional: bool = False
    ) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(
                f"{name} must be an int{' or None' if optional else ''}, got {value!r}"
            )
        if low is not None and value < low:
            raise ValueError(f"{name} must be >= {low}, got {value}")
        if high is not None and value > high:
            raise ValueError(f"{name} must be <= {high}, got {value}")

    def _check_float(
        self, name: str, low: float, high: float = math.inf, *, open_low: bool = False
    ) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        above = value > low if open_low else value >= low
        if not (above and value <= min(high, _LARGEST)):  # NaN fails as well
            bounds = (
                f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"
            )
            raise ValueError(f"{name} must be in {bounds}, got {value!r}")
