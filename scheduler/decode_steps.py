"""How many steps a batch that decodes computes before anybody looks at its tokens.

The invariant: no row of the block table has to change until then, and whatever a sequence has
computed beyond its turn's end overwrites nothing that it still sees.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

from .kv_cache_manager import KVCacheManager
from .output import ScheduledSequence, SchedulerOutput

_UNKNOWN = array("i", [-1])


def give_steps(
    kv: KVCacheManager, sequences: Sequence[ScheduledSequence], limit: int, *, anybody_waits: bool
) -> SchedulerOutput:
    """As many steps of what is scheduled, up to ``limit``, as all can decode for, with blocks.

    Whoever ends first may make room for another; if nobody waits, the others go on.
    """
    if limit == 1 or not sequences or not all(s.decodes_alone for s in sequences):
        return SchedulerOutput(tuple(sequences))
    longest = (min if anybody_waits else max)(s.max_new_tokens for s in sequences)
    num_steps = _fitting(kv, sequences, 0, min(limit, longest))
    return SchedulerOutput(_allocate(kv, sequences, num_steps), num_steps)


def give_more_steps(kv: KVCacheManager, output: SchedulerOutput) -> SchedulerOutput | None:
    """What the same batch computes next, whatever its present steps sample, in as many
    steps if there are so many left; ``None`` if those are to be seen first."""
    done = output.num_steps
    wanted = min(done, max(s.max_new_tokens for s in output.sequences) - done)
    if wanted < 1 or _fitting(kv, output.sequences, done, wanted) < wanted:
        return None
    following = (
        replace(
            s,
            token_ids=_UNKNOWN,
            num_computed_tokens=s.num_computed_tokens + done,
            max_new_tokens=max(0, s.max_new_tokens - done),
        )
        for s in _allocate(kv, output.sequences, done + wanted)
    )
    return SchedulerOutput(tuple(following), wanted, follows=True)


def _fitting(
    kv: KVCacheManager, sequences: Sequence[ScheduledSequence], done: int, wanted: int
) -> int:
    """How many of ``wanted`` steps, after ``done`` ones that nobody has seen yet, all can take."""
    for s in sequences:
        own = min(done + wanted, s.max_new_tokens)
        if own > done:
            most = kv.max_decode_steps(s.seq_id, s.num_computed_tokens, own)
            wanted = most - done if most < own else wanted
    return wanted


def _allocate(
    kv: KVCacheManager, sequences: Sequence[ScheduledSequence], num_steps: int
) -> tuple[ScheduledSequence, ...]:
    """Give all of them the blocks for so many steps, and for the one after if the row stays as it
    is: that one's slot is worked out by the last step.

    Returns:
        The sequences with their rows as they are then.
    """
    given = []
    for s in sequences:
        own = min(num_steps + 1, s.max_new_tokens)
        end = s.num_computed_tokens + own
        fits = kv.max_decode_steps(s.seq_id, s.num_computed_tokens, own)
        # An empty column may get its block before it may be written to.
        if fits == own or kv.lacks_block(s.seq_id, end - 1):
            kv.allocate(s.seq_id, end)
        else:
            kv.allocate(s.seq_id, s.num_computed_tokens + fits)
        row = kv[s.seq_id].hand_out()
        given.append(s if row is s.block_row else replace(s, block_row=row))
    return tuple(given)
