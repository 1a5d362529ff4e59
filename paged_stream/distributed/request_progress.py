"""What was yielded of a request, so that a second run goes on from there."""

from __future__ import annotations

from array import array
from dataclasses import replace

from paged_stream.distributed.replica_set import PoolError
from paged_stream.outputs import RequestDelta


class Progress:
    """Of one request, over all its runs; each begins with `begin`."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._yielded: dict[int, array[int]] = {}  # token ids by completion
        self._num_prompt_logprobs: dict[int, int] = {}
        self._finished: set[int] = set()
        self._at: dict[int, list[int]] = {}  # in this run: tokens and prompt logprobs
        self._num_unfinished = 1

    @property
    def is_over(self) -> bool:
        return self._num_unfinished == 0

    def begin(self, num_completions: int) -> None:
        """A run starts from the beginning."""
        self._at = {}
        self._num_unfinished = num_completions

    def note(self, delta: RequestDelta) -> RequestDelta | None:
        """What of a run's delta was not yielded before.

        Raises:
            PoolError: this run comes to other tokens than were yielded.
        """
        index, tokens = delta.index, delta.delta_token_ids
        at = self._at.setdefault(index, [0, 0])
        yielded = self._yielded.setdefault(index, array("i"))
        known = len(yielded) - at[0]  # of what was yielded and this run has not reached
        if known > 0 and tokens and yielded[at[0] : at[0] + len(tokens)].tolist() != tokens:
            raise PoolError(
                f"request {self._request_id}: its worker died after {len(yielded)} tokens, and "
                "another one does not come to the same; send it again"
            )
        at[0] += len(tokens)
        self._num_unfinished -= delta.finished
        prompt_logprobs = delta.prompt_logprobs
        if prompt_logprobs is not None:
            seen = self._num_prompt_logprobs.get(index, 0)
            first = max(0, seen - at[1])
            at[1] += len(prompt_logprobs)
            prompt_logprobs = prompt_logprobs[first:] or None
            self._num_prompt_logprobs[index] = max(seen, at[1])
        if index in self._finished or (known > 0 and tokens):
            return None
        if not tokens and not delta.finished and prompt_logprobs is None:
            return None
        yielded.extend(tokens)
        if delta.finished:
            self._finished.add(index)
        return replace(delta, request_id=self._request_id, prompt_logprobs=prompt_logprobs)
