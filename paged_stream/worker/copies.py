"""K and V of whole sequences between cache and host, beside the steps.

The order that must hold: what is copied out is read before a step can overwrite its slots; host
memory is read when it has arrived; a layer's restored K and V are there before a step's layer reads
them. So a copy out gathers in the lane of steps, which is fast, and leaves the slow way to the host
to the lane of copies. A copy in writes the cache in the lane of copies, once all earlier steps are
done, layer by layer; steps wait for each layer as they come to it, and everything else for all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

import torch

from paged_stream import ops
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.worker.kv_cache import KVCache
from paged_stream.worker.lanes import Lane, Mark

# Of what was gathered and is on its way to the host; then the host waits for the oldest.
_MAX_BYTES_IN_FLIGHT = 512 << 20

Layer = tuple[torch.Tensor, torch.Tensor]


class CacheCopies:
    """Copies of one cache.

    Args:
        steps: where the steps are queued.
        copies: where the copies are.
    """

    def __init__(
        self,
        cache: KVCache,
        steps: Lane,
        copies: Lane,
        max_bytes_in_flight: int = _MAX_BYTES_IN_FLIGHT,
    ) -> None:
        self.cache = cache
        self._steps, self._copies = steps, copies
        self._max_bytes_in_flight = max_bytes_in_flight
        self._in_flight: deque[tuple[Mark, int]] = deque()
        self._arrivals: list[Mark | None] = [None] * len(cache.layers)  # of each layer

    def copy_out(self, slots: torch.Tensor) -> tuple[KVTokens, Mark]:
        """Start to copy tokens at ``slots`` (int64 [N]) to the host. The slots may be written by
        whatever is queued next.

        Returns:
            Where the tokens will be, and when.
        """
        self.settle()
        tokens = self.cache.host_tokens(len(slots))
        for layer, (k_cache, v_cache) in enumerate(self.cache.layers):
            gathered = ops.gather_blocks(k_cache, v_cache, slots)
            self._copies.wait(self._steps.mark())
            targets = tokens.key[layer], tokens.value[layer]
            self._copies.run(partial(_copy, targets, gathered))
            for tensor in gathered:
                self._copies.hold(tensor)
            self._note(sum(tensor.nbytes for tensor in gathered))
        return tokens, self._copies.mark()

    def copy_in(self, slots: torch.Tensor, tokens: KVTokens) -> None:
        """Start to copy the first N tokens to ``slots`` (int64 [N]); -1 leaves one out. They are on
        the host already, and may be let go of."""
        self._copies.wait(self._steps.mark())
        self._copies.hold(slots)
        for layer in range(len(self.cache.layers)):
            self._copies.run(partial(self.cache.write_layer, layer, slots, tokens))
            self._arrivals[layer] = self._copies.mark()

    def layers(self) -> Iterable[Layer]:
        """Each layer's cache in turn; what is queued after it was taken finds all K and V there."""
        if all(mark is None for mark in self._arrivals):
            return self.cache.layers
        return self._arriving_layers()

    def _arriving_layers(self) -> Iterator[Layer]:
        for index, layer in enumerate(self.cache.layers):
            self._await(index)
            yield layer

    def settle(self) -> None:
        """Let what is queued next find all that was copied in."""
        for index in range(len(self._arrivals)):
            self._await(index)

    def _await(self, layer: int) -> None:
        mark, self._arrivals[layer] = self._arrivals[layer], None
        if mark is not None:
            self._steps.wait(mark)

    def _note(self, num_bytes: int) -> None:
        """Bound the memory of what was gathered."""
        self._in_flight.append((self._copies.mark(), num_bytes))
        while self._in_flight and (
            self._in_flight[0][0].is_reached()
            or sum(size for _, size in self._in_flight) > self._max_bytes_in_flight
        ):
            mark, _ = self._in_flight.popleft()
            mark.reach()


def _copy(targets: Layer, sources: Layer) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source, non_blocking=True)
