"""One turn: what a sequence generates, scores or embeds, as deltas for whoever reads it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paged_stream.engine.outputs import Inbox, RequestDelta, RequestMetrics
from paged_stream.scheduler.output import FinishReason, SequenceUpdate
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.trace_context import current
from paged_stream.text.detokenizer import CONTEXT_TOKENS, Detokenizer
from paged_stream.text.structures import Progress
from paged_stream.text.tokenizer import Tokenizer

# Tokens of an interrupted turn that are looked at again for text that was held back.
_DETOKENIZED_AGAIN = 512


@dataclass(slots=True, kw_only=True)
class Turn:
    """A request's turn, one of its copies', or a stream's.

    ``inbox`` is where its deltas go; without one, they wait for `Turns.take_undelivered`. Once the
    prompt of a request is computed, its sequence ``generates``, and beside it ``num_copies``
    copies. ``new_text`` belongs to the next delta. ``eos_token_ids`` end the turn, besides those
    that its parameters name; ``stop_token_ids`` are all of these. ``progress`` is in what its
    text has to be, if it has to be anything. ``is_last`` tells that no other turn goes on where
    this one ends. ``template_rewrote`` is in its deltas. ``num_prompt_tokens`` had to be
    computed before it generated, ``num_generated_tokens`` were handed out since. ``trace`` is the
    context in which it was asked for.
    """

    request_id: str
    index: int
    params: SamplingParams
    seed: int = 0
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    progress: Progress | None = None
    is_last: bool = False
    template_rewrote: bool = False
    detokenizer: Detokenizer | None = None
    new_text: str = ""
    stop_string: str | None = None
    inbox: Inbox | None = None
    num_copies: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    generates: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    metrics: RequestMetrics = field(default_factory=RequestMetrics.of_arrival)
    trace: Any = field(default_factory=current)

    @property
    def is_queued(self) -> bool:
        """Whether it waits for its first step."""
        return self.metrics.first_scheduled_time is None

    def note_start(self, started: float) -> float:
        """Note its first step, which ``started`` then by ``time.monotonic()``; returns how long it
        has waited, in seconds."""
        self.metrics = replace(self.metrics, first_scheduled_time=self._time(started))
        return started - self.queued_at

    def _time(self, moment: float) -> float:
        """The Unix time of a moment of ``time.monotonic()``, as if nobody had set the clock since
        the arrival."""
        return self.metrics.arrival_time + moment - self.queued_at

    @staticmethod
    def num_context_tokens(num_generated: int) -> int:
        """How many of a sequence's last tokens `begin_text` needs."""
        return min(num_generated, _DETOKENIZED_AGAIN) + CONTEXT_TOKENS

    def begin_text(self, tokenizer: Tokenizer, last_ids: Sequence[int], num_generated: int) -> None:
        """Detokenize what comes from here on. The last ``num_generated`` tokens are of this turn:
        they may end within a character, or a stop string."""
        params = self.params
        if not params.detokenize:
            return
        count = min(num_generated, _DETOKENIZED_AGAIN)
        split = max(0, len(last_ids) - count)
        self.detokenizer = Detokenizer(
            tokenizer,
            params.stop or (),
            last_ids[:split],
            includes_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens - (num_generated - len(last_ids[split:])),
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        for token_id in last_ids[split:]:
            self.detokenizer.append(token_id)

    def ends_with(self, token_id: int) -> bool:
        """Add a token; whether that completes a stop string, or what the text has to be."""
        if self.progress is not None:
            if token_id in self.stop_token_ids:  # before min_tokens, where nothing else was left
                return True
            self.progress.append(token_id)
        return self._completes_stop(token_id) or self._is_complete

    def _completes_stop(self, token_id: int) -> bool:
        if self.detokenizer is None:
            return False
        text, self.stop_string = self.detokenizer.append(token_id)
        self.new_text += text
        return self.stop_string is not None

    @property
    def _is_complete(self) -> bool:
        return self.progress is not None and self.progress.is_over

    def delta(self, update: SequenceUpdate, finish_reason: FinishReason | None) -> RequestDelta:
        """What a step has added, and why the turn is over if it is."""
        stop_token = None
        if finish_reason == "stop" and self.stop_string is None and not self._is_complete:
            stop_token = update.token_ids[-1]
            if self.params.include_stop_str_in_output:
                self._completes_stop(stop_token)
        text, self.new_text = self.new_text, ""
        if finish_reason is not None:
            text += self._last_text()
        self._note_progress(bool(update.token_ids), finish_reason is not None)
        return RequestDelta(
            request_id=self.request_id,
            index=self.index,
            delta_text=text,
            delta_token_ids=update.token_ids,
            finished=finish_reason is not None,
            finish_reason=finish_reason,
            stop_reason=None
            if stop_token in self.eos_token_ids
            else self.stop_string or stop_token,
            logprobs=[update.logprob] if update.logprob is not None else None,
            prompt_logprobs=update.prompt_logprobs or None,
            metrics=self.metrics,
            error=update.error,
            template_rewrote=self.template_rewrote,
            embedding=update.embedding,
        )

    def _note_progress(self, has_tokens: bool, has_finished: bool) -> None:
        """Most deltas share one object: it changes with the first token, and at the end."""
        is_first = has_tokens and self.metrics.first_token_time is None
        if is_first or has_finished:
            now = self._time(time.monotonic())
            if is_first:
                self.metrics = replace(self.metrics, first_token_time=now)
            if has_finished:
                self.metrics = replace(self.metrics, finished_time=now)

    def ended(self, index: int, reason: FinishReason, error: str | None = None) -> RequestDelta:
        """The end of the turn, or of a copy that it would have had, without another token."""
        self._note_progress(has_tokens=False, has_finished=True)
        return RequestDelta(
            request_id=self.request_id,
            index=index,
            delta_text=self._last_text(),
            delta_token_ids=[],
            finished=True,
            finish_reason=reason,
            stop_reason=None,
            logprobs=None,
            prompt_logprobs=None,
            metrics=self.metrics,
            error=error,
            template_rewrote=self.template_rewrote,
        )

    def _last_text(self) -> str:
        """What was held back; nothing of it belongs to a text that a stop string has ended."""
        if self.detokenizer is None or self.stop_string is not None:
            return ""
        return self.detokenizer.finish(is_last=self.is_last)
