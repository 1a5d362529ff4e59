"""Small schedulers, and steps without a model."""

from __future__ import annotations

from collections.abc import Iterable

from paged_stream.scheduler.output import ModelOutput, SchedulerOutput, SequenceUpdate
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.scheduler_config import SchedulerConfig
from paged_stream.scheduler.sequence import Sequence
from paged_stream.scheduler.sink_window import SinkWindow

# One pinned block and a ring of five, with blocks of 4.
SMALL = SinkWindow(4, 16)
STOP = 9


def make_scheduler(*, guesser=None, **overrides) -> Scheduler:
    settings = {
        "num_blocks": 64,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 128,
    }
    return Scheduler(SchedulerConfig(**settings | overrides), guesser)


def generate(scheduler: Scheduler, seq_id: int, **params) -> None:
    scheduler.start_turn(seq_id, SamplingParams(**params), stop_token_ids=(STOP,))


def add(scheduler, seq_id, prompt, *, max_tokens=4, window=SMALL, priority=0):
    """A request with a prompt of so many tokens, of its own."""
    scheduler.open(seq_id, window, max_tokens=prompt + max_tokens, priority=priority)
    scheduler.append(seq_id, [1000 + seq_id] * prompt)
    generate(scheduler, seq_id, max_tokens=max_tokens)


def stream(scheduler, seq_id, token_ids: Iterable[int], window=SMALL) -> Sequence:
    """An idle stream that has computed all of its tokens but the last."""
    sequence = scheduler.open(seq_id, window, is_stream=True)
    scheduler.append(seq_id, token_ids)
    run(scheduler)
    return sequence


def sampled(output: SchedulerOutput, token_id: int) -> list[list[int]]:
    """What a worker returns if it samples nothing but ``token_id``."""
    counts = [min(output.num_steps, s.max_new_tokens) for s in output.sequences]
    return [[token_id] * (min(n, 1) if token_id == STOP else n) for n in counts]


def step(scheduler, token_id=8, paused=()) -> tuple[SchedulerOutput, list[SequenceUpdate]]:
    output = scheduler.schedule(paused)
    tokens = sampled(output, token_id)
    result = ModelOutput(tokens, [None] * len(tokens), [[] for _ in tokens], [None] * len(tokens))
    updates = scheduler.update(output, result)
    scheduler.check_integrity()
    return output, updates


def run(scheduler) -> list[SchedulerOutput]:
    """All steps until nothing is left to compute."""
    outputs = []
    while scheduler.has_unfinished():
        outputs.append(step(scheduler)[0])
        assert outputs[-1].sequences, "a step without progress"
    return outputs


def parked(scheduler) -> list[int]:
    return [seq_id for seq_id, sequence in scheduler.sequences.items() if sequence.is_parked]


def chunks(output: SchedulerOutput) -> dict[int, int]:
    return {s.seq_id: len(s.token_ids) for s in output.sequences}
