"""One request of a pool. If its replica dies, another one computes it again from the beginning."""

from __future__ import annotations

import contextlib

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.pool.placement import Attempts, Placement
from paged_stream.pool.replica import NoAnswerError, Replica
from paged_stream.pool.request_progress import RequestProgress
from paged_stream.pool.uninterrupted import uninterrupted
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.inputs import Prompt


class PoolRequest:
    """Runs a request on one replica after the other until it is finished.

    Args:
        request_id: goes on its deltas.
        params: have a seed, so that another replica draws the same numbers.
        priority: smaller runs first.
        lora_request: the adapter that it is computed with.
    """

    def __init__(
        self,
        placement: Placement,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        priority: int,
        lora_request: LoRARequest | None = None,
    ) -> None:
        self._placement = placement
        self._name = ""  # of the present run: its replica may still be busy with the last one
        self._request = (prompt, params, priority, lora_request)
        self._progress = RequestProgress(request_id, params.n)
        self._replica: Replica | None = None
        self._is_aborted = False

    async def deltas(self) -> AsyncDeltas:
        """Yield what the request adds, each part once.

        Raises:
            ValueError: as `EngineApi.generate`.
            PoolError: no replica can do it; or another replica comes to other tokens than those
                that were yielded already, which rounding can cause.
        """
        attempts = Attempts(self._placement.replicas)
        progress = self._progress
        while not (progress.is_over or self._is_aborted):
            async with self._placement.replica_for_request() as replica:
                name = self._name = self._placement.new_name("pooled-request")
                progress.begin()
                self._replica = replica
                try:
                    # To its end: Ray may reorder calls, and what is forgotten must have begun.
                    await uninterrupted(replica.call("start_request", name, *self._request))
                    if self._is_aborted:  # while it was being started
                        await replica.call("stop_request", name)
                    while not progress.is_over:
                        deltas = await replica.call("take_request", name)
                        if not deltas:  # it was aborted
                            break
                        for delta in deltas:
                            if (fresh := progress.note(delta)) is not None:
                                yield fresh
                except NoAnswerError as error:
                    attempts.failed(error)
                finally:
                    self._replica = None
                    self._placement.replicas.spawn(replica.clean_up("forget_request", name))
        for delta in progress.last_deltas("abort"):
            yield delta

    async def abort(self) -> None:
        """End the request. Its unfinished completions keep what they have."""
        self._is_aborted = True
        if (replica := self._replica) is not None:
            with contextlib.suppress(NoAnswerError):  # its reader will notice
                await replica.call("stop_request", self._name)
