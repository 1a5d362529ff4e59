"""What was yielded of a request, so that a second run yields only the rest.

A request may generate without end, so no tokens are kept: their number tells what to leave out, and
a digest whether the second run comes to the same.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from paged_stream.engine.outputs import FinishReason, RequestDelta, RequestMetrics
from paged_stream.pool.errors import PoolError


def _new_digest() -> Any:
    return blake2b(digest_size=16)


@dataclass(slots=True)
class _Completion:
    """What was yielded of one completion, and how far the current run has come."""

    num_tokens: int = 0
    num_chars: int = 0
    num_prompt_logprobs: int = 0
    is_finished: bool = False
    known: bytes = b""  # the digest of the tokens that were yielded before the current run
    digest: Any = field(default_factory=_new_digest)  # of the current run
    at_token: int = 0
    at_char: int = 0
    at_prompt_logprob: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics.of_arrival)

    def begin(self) -> None:
        if self.at_token == self.num_tokens:  # otherwise the last run has not come so far
            self.known = self.digest.digest()
        self.digest = _new_digest()
        self.at_token = self.at_char = self.at_prompt_logprob = 0

    def fresh_tokens(self, token_ids: list[int], is_last: bool) -> list[int] | None:
        """Take tokens of the current run; returns those that were not yielded before, ``None`` if
        the run is another one than the first."""
        num_known = min(len(token_ids), self.num_tokens - self.at_token)
        known, fresh = token_ids[:num_known], token_ids[num_known:]
        self._add(known)
        if known and self.at_token == self.num_tokens and self.digest.digest() != self.known:
            return None
        ends_early = is_last and self.at_token < self.num_tokens
        if ends_early or (fresh and self.is_finished):
            return None
        self._add(fresh)
        self.num_tokens = max(self.num_tokens, self.at_token)
        return fresh

    def _add(self, token_ids: list[int]) -> None:
        self.digest.update(array("q", token_ids).tobytes())
        self.at_token += len(token_ids)


class RequestProgress:
    """The progress of one request over all its runs. Two runs generate the same, but may deliver it
    in other pieces.

    Args:
        request_id: goes on every delta that is yielded.
        num_completions: how many completions the request has.
    """

    def __init__(self, request_id: str, num_completions: int) -> None:
        self._request_id = request_id
        self._completions = [_Completion() for _ in range(num_completions)]
        self._num_unfinished = num_completions

    @property
    def is_over(self) -> bool:
        return self._num_unfinished == 0

    def begin(self) -> None:
        """Start a run from the beginning."""
        self._num_unfinished = len(self._completions)
        for completion in self._completions:
            completion.begin()

    def note(self, delta: RequestDelta) -> RequestDelta | None:
        """Take a delta of the current run; returns what of it was not yielded before.

        Raises:
            PoolError: its tokens are not those that were yielded.
        """
        done = self._completions[delta.index]
        self._num_unfinished -= delta.finished
        token_ids = done.fresh_tokens(delta.delta_token_ids, delta.finished)
        if token_ids is None:
            raise PoolError(
                f"request {self._request_id}: its replica died after {done.num_tokens} tokens, "
                "and another one does not come to the same; send it again"
            )
        num_known = len(delta.delta_token_ids) - len(token_ids)
        text = delta.delta_text[max(0, done.num_chars - done.at_char) :]
        done.at_char += len(delta.delta_text)
        done.num_chars = max(done.num_chars, done.at_char)
        prompt_logprobs = delta.prompt_logprobs
        if prompt_logprobs is not None:
            first = max(0, done.num_prompt_logprobs - done.at_prompt_logprob)
            done.at_prompt_logprob += len(prompt_logprobs)
            done.num_prompt_logprobs = max(done.num_prompt_logprobs, done.at_prompt_logprob)
            prompt_logprobs = prompt_logprobs[first:] or None
        done.metrics = done.metrics.updated(delta.metrics)
        ends = delta.finished and not done.is_finished
        done.is_finished |= delta.finished
        if not (token_ids or text or prompt_logprobs or ends):
            return None
        return replace(
            delta,
            request_id=self._request_id,
            delta_text=text,
            delta_token_ids=token_ids,
            logprobs=None if delta.logprobs is None else delta.logprobs[num_known:],
            prompt_logprobs=prompt_logprobs,
            metrics=done.metrics,
        )

    def last_deltas(self, finish_reason: FinishReason) -> list[RequestDelta]:
        """Deltas that end the completions that no run has finished."""
        return [
            RequestDelta(
                request_id=self._request_id,
                index=index,
                delta_text="",
                delta_token_ids=[],
                finished=True,
                finish_reason=finish_reason,
                stop_reason=None,
                logprobs=None,
                prompt_logprobs=None,
                metrics=replace(completion.metrics, finished_time=time.time()),
            )
            for index, completion in enumerate(self._completions)
            if not completion.is_finished
        ]
