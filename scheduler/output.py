"""The messages between policy and workers: plain, picklable, complete in themselves."""

from __future__ import annotations

from array import array
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .sampling_params import SamplingParams
from .sink_window import SinkWindow

# Why a turn is over: a stop token or string; its limit; somebody aborted it; or it could not go on.
FinishReason: TypeAlias = Literal["stop", "length", "abort", "error"]


class ParkedLostError(Exception):
    """What was parked of a sequence does not come back: its file is gone, or was altered."""


@dataclass(frozen=True, slots=True)
class TokenMask:
    """The tokens that may come next: a bit for each id, beginning with the lowest bit of the first
    byte. It may be worked out while the step is computed."""

    work: Future[bytes]

    def bits(self) -> bytes:
        """Wait for it."""
        return self.work.result()

    def __reduce__(self) -> Any:
        return _known_mask, (self.bits(),)


def _known_mask(bits: bytes) -> TokenMask:
    work: Future[bytes] = Future()
    work.set_result(bits)
    return TokenMask(work)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSequence:
    """One sequence's share of a step.

    Args:
        seq_id: the sequence.
        token_ids: the chunk, int32; its first token is at position ``num_computed_tokens``.
        num_computed_tokens: tokens whose K and V are already in the cache.
        num_prompt_tokens: positions from here on were generated, not given.
        next_token_id: the known token that follows the chunk, -1 when none is known.
        block_row: the sequence's row of the block table, int32: sink columns, then the ring.
            -1 marks a column that no token has reached. Never changes.
        ring_blocks: columns of the ring, ``len(block_row)`` less the sink columns.
        sink_window: what its queries see.
        sampling_params: the request's parameters.
        stop_token_ids: every id that ends the request (the model's own included).
        seed: the request's seed, always set.
        max_new_tokens: the most tokens that it may gain before its turn is over.
        history: int32, the tokens visible at the place to sample, in order. Filled when the
            parameters need them and the step samples; empty otherwise.
        bad_words: token ids of each of the parameters' bad words, in each way to write it.
        mask: set when the parameters have a structure and the step samples.
        embeds: the chunk ends the known tokens, and its last hidden state is wanted in place of a
            token.
        num_draft_tokens: the last tokens of the chunk that are only guessed. One is sampled behind
            each of them and before the first, up to the first wrong guess.
        adapter: the key of the adapter that computes it; empty for the model as it is.
    """

    seq_id: int
    token_ids: array[int]
    num_computed_tokens: int
    num_prompt_tokens: int
    next_token_id: int
    block_row: array[int]
    ring_blocks: int
    sink_window: SinkWindow
    sampling_params: SamplingParams
    stop_token_ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    history: array[int]
    bad_words: tuple[tuple[int, ...], ...] = ()
    mask: TokenMask | None = None
    embeds: bool = False
    num_draft_tokens: int = 0
    adapter: str = ""

    @property
    def samples(self) -> bool:
        """True when the chunk ends the known tokens and the next one is to be sampled."""
        return self.next_token_id < 0 and not self.embeds

    @property
    def num_tokens(self) -> int:
        """Length of the stream once the chunk is computed, if all guesses are right."""
        return self.num_computed_tokens + len(self.token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Tokens of the chunk that are not guessed."""
        return len(self.token_ids) - self.num_draft_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, before this step's."""
        return max(0, self.num_tokens - self.num_prompt_tokens)

    @property
    def decodes_alone(self) -> bool:
        """Whether this step, and those that follow it, each compute one token and sample the next
        from what the parameters and the token say, so that the host need not look in between."""
        params = self.sampling_params
        return (
            self.samples
            and len(self.token_ids) == 1
            and params.logprobs is None
            and not self.changes_logits
        )

    @property
    def edits_logits(self) -> bool:
        """Whether the logits at the place to sample change otherwise than by a structure."""
        params = self.sampling_params
        return params.edits_logits or params.min_tokens > self.num_output_tokens

    @property
    def changes_logits(self) -> bool:
        """Whether the logits at the place to sample change before temperature and the like."""
        return self.edits_logits or self.sampling_params.structured_outputs is not None


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """What is computed next; no sequence appears twice.

    Args:
        sequences: their shares of the first step.
        num_steps: if more than 1, every sequence decodes for so many steps, or until it has met
            a stop token or gained its ``max_new_tokens``. Its row stays as it is.
        follows: these steps go on from the last ones of the same sequences, whose tokens nobody has
            seen yet: ``token_ids`` are not known.
    """

    sequences: tuple[ScheduledSequence, ...]
    num_steps: int = 1
    follows: bool = False


@dataclass(frozen=True, slots=True)
class CopyBlock:
    """Copy a whole block, every layer's K and V, before ``source`` or its copy is written again."""

    source: int
    destination: int


@dataclass(frozen=True, slots=True)
class MoveTokens:
    """Move K and V from slots to slots (they may overlap), and turn K by ``distance`` positions."""

    source_slots: array[int]
    destination_slots: array[int]
    distance: int


@dataclass(frozen=True, slots=True)
class ParkTokens:
    """Copy a sequence's K and V out of the cache, under ``key``; the slots may be reused then."""

    key: int
    slots: array[int]


@dataclass(frozen=True, slots=True)
class RestoreTokens:
    """Copy what was parked under ``key`` back to these slots, one for each of its tokens, and
    forget it. -1 stands for a token that the cache has already."""

    key: int
    slots: array[int]


@dataclass(frozen=True, slots=True)
class DropParked:
    """Forget what was parked under ``key``."""

    key: int


# What the cache needs done before the next step, in order. Slots are int64.
KVOperation = CopyBlock | MoveTokens | ParkTokens | RestoreTokens | DropParked


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token and of the most likely ones at its place.

    Args:
        token_id: the token that stands there.
        logprob: its natural logarithm of probability, before penalties and temperature.
        rank: 1 for the most likely token.
        top: ``{token_id: logprob}`` of as many most likely tokens as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a step computed, in the order of ``SchedulerOutput.sequences``.

    Args:
        token_ids: the sampled tokens, one per step up to the one that ends the turn; none for a
            sequence that was not sampled.
        logprobs: of the sampled token, where asked for (then there is only one).
        prompt_logprobs: of the known tokens that follow each of the chunk's tokens, where asked
            for (one fewer when the chunk ends the prompt); empty otherwise.
        errors: why nothing could be sampled behind ``token_ids``, or nothing be scored; ``None``
            for a sequence that is well.
        embeddings: of the sequences that are embedded, by ``seq_id``: the last hidden state as a
            vector of length 1, float32.
    """

    token_ids: list[list[int]]
    logprobs: list[TokenLogprob | None]
    prompt_logprobs: list[list[TokenLogprob]]
    errors: list[str | None]
    embeddings: dict[int, array[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SequenceUpdate:
    """What one or several steps meant for one sequence, from `Scheduler.update`.

    Args:
        seq_id: the sequence.
        token_ids: the tokens it gained.
        num_computed_tokens: those of the stream that are computed now.
        finish_reason: set when its turn is over.
        logprob: of the token it gained, where asked for.
        prompt_logprobs: as in `ModelOutput`.
        error: why its turn ended with ``"error"``, if it did.
        embedding: as in `ModelOutput`.
    """

    seq_id: int
    token_ids: list[int]
    num_computed_tokens: int
    finish_reason: FinishReason | None
    logprob: TokenLogprob | None
    prompt_logprobs: list[TokenLogprob]
    error: str | None = None
    embedding: array[float] | None = None
