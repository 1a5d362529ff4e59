"""Several decode steps of one batch without the host: forward, sample, advance.

Whatever a step changes, it changes in place: tensors keep their shapes and addresses, so that a
step can be recorded once and played back.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from paged_stream import ops
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.layers.low_rank import StepAdapters
from paged_stream.models.decoder import Decoder
from paged_stream.scheduler.output import SchedulerOutput
from paged_stream.worker.input_batch import build_forward_batch
from paged_stream.worker.sampler import sampling_tensors
from paged_stream.worker.staging import to_device

_NO_STOP = _NO_BLOCK = -1
_NOT_YET = -2  # in `generated`, where `NO_TOKEN` stands for a token that could not be sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBatch:
    """B sequences that decode by themselves, one token of each per step.

    Args:
        input: the next step's, one token of each sequence.
        sampling: their parameters.
        stop_token_ids: int64 [B, M], padded with -1.
        num_left: int64 [B], tokens that each may still gain; 0 once it has stopped.
        generated: int64 [B, num_steps], what each has gained in these steps, then -2. -1 is a
            token that could not be sampled.
        num_generated: int64 [B].
        block_size: tokens per block.
        adapters: of the sequences that have one; ``None`` if none has.
    """

    input: ops.BatchTensors
    sampling: ops.SamplingTensors
    stop_token_ids: torch.Tensor
    num_left: torch.Tensor
    generated: torch.Tensor
    num_generated: torch.Tensor
    block_size: int
    adapters: StepAdapters | None = None


def split_tensors(batch: DecodeBatch) -> list[torch.Tensor]:
    """All tensors of a batch, in one order."""
    rest = batch.stop_token_ids, batch.num_left, batch.generated, batch.num_generated
    return [*batch.input, *batch.sampling, *rest]


def join_tensors(batch: DecodeBatch, tensors: Sequence[torch.Tensor]) -> DecodeBatch:
    """The batch with other tensors, in the order of `split_tensors`."""
    rest = iter(tensors)
    return DecodeBatch(
        input=ops.BatchTensors(*islice(rest, len(batch.input))),
        sampling=ops.SamplingTensors(*islice(rest, len(batch.sampling))),
        stop_token_ids=next(rest),
        num_left=next(rest),
        generated=next(rest),
        num_generated=next(rest),
        block_size=batch.block_size,
        adapters=batch.adapters,
    )


def prepare_decode(
    output: SchedulerOutput, block_size: int, adapters: StepAdapters | None = None
) -> DecodeBatch:
    """Lay out on the host what ``output.num_steps`` steps need."""
    sequences = output.sequences
    count = len(sequences)
    width = max(len(sequence.stop_token_ids) for sequence in sequences)
    stops = [s.stop_token_ids + (_NO_STOP,) * (width - len(s.stop_token_ids)) for s in sequences]
    return DecodeBatch(
        input=build_forward_batch(output, block_size, torch.device("cpu")).tensors,
        sampling=sampling_tensors(sequences),
        stop_token_ids=torch.tensor(stops, dtype=torch.int64).view(count, width),
        num_left=torch.tensor([s.max_new_tokens for s in sequences]),
        generated=torch.full((count, output.num_steps), _NOT_YET),
        num_generated=torch.zeros(count, dtype=torch.int64),
        block_size=block_size,
        adapters=adapters,
    )


def move_batch(batch: DecodeBatch, device: torch.device) -> DecodeBatch:
    """Bring a batch from the host to the device."""
    return join_tensors(batch, to_device(split_tensors(batch), device))


def continue_decode(batch: DecodeBatch, output: SchedulerOutput) -> None:
    """Let the same batch go on: all but the blocks that it comes to next is on the device."""
    table = batch.input.block_table
    width, rows = table.shape[1], bytearray()
    for sequence in output.sequences:
        row = sequence.block_row
        rows += row + array("i", [_NO_BLOCK]) * (width - len(row))
    fresh = torch.frombuffer(rows, dtype=torch.int32).view(len(output.sequences), width)
    # There may be rows behind them that only fill the batch up.
    (moved,) = to_device([fresh], table.device)
    table[: len(moved)].copy_(moved)
    batch.generated.fill_(_NOT_YET)
    batch.num_generated.zero_()


def run_decode_step(
    model: Decoder,
    kv_caches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    batch: DecodeBatch,
) -> None:
    """Compute one step of all that have not stopped, and make the next one's input of it."""
    # A window may begin to move between the steps.
    step = ForwardBatch(tensors=batch.input, has_gap=True, host=None)
    hidden = model(step, kv_caches, batch.adapters)
    logits = model.compute_logits(hidden)
    # A token is drawn at its own position, which is the length of what precedes it.
    sampled = ops.sample_tokens(logits, batch.sampling, batch.input.seq_lens)
    ops.advance_decode(
        sampled,
        batch.generated,
        batch.num_generated,
        batch.num_left,
        batch.stop_token_ids,
        batch.input,
        batch.block_size,
    )


def start_collecting(batch: DecodeBatch, num_steps: int) -> Callable[[], list[list[int]]]:
    """Copy what the steps have generated to the host, in their order; what comes back waits for it
    and gives the tokens that each sequence has gained, and `NO_TOKEN` if the next one could not be
    sampled."""
    source = batch.generated[:, :num_steps]
    generated = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
    generated.copy_(source, non_blocking=True)
    copied = None
    if source.is_cuda:
        copied = torch.cuda.Event()
        copied.record()

    def wait() -> list[list[int]]:
        if copied is not None:
            copied.synchronize()
        rows: list[list[int]] = generated.tolist()
        return [[token_id for token_id in row if token_id != _NOT_YET] for row in rows]

    return wait
