"""One step's batch, from the worker to every layer; built once per step, passed as argument."""

from __future__ import annotations

from dataclasses import dataclass

from paged_stream.ops import BatchTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """Input of one forward pass.

    Args:
        tensors: on the model's device.
        has_gap: whether keys between the sinks and any token may have gone, so that
            ``sink_positions`` may differ from ``positions``.
        host: the same tensors on the host, for backends that plan there; ``None`` after steps that
            the device went on by itself.
    """

    tensors: BatchTensors
    has_gap: bool
    host: BatchTensors | None
