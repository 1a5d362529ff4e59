"""One forward pass: inputs, model, sampling; or several, of a batch that decodes. Holds no state of
any sequence but K and V, in the cache or parked beside it."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Sequence

import torch

from paged_stream import ops
from paged_stream.layers.low_rank import LoadedAdapter, StepAdapters, step_adapters
from paged_stream.models.decoder import Decoder
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.output import (
    CopyBlock,
    DropParked,
    KVOperation,
    ModelOutput,
    MoveTokens,
    ParkTokens,
    RestoreTokens,
    ScheduledSequence,
    SchedulerOutput,
    TokenLogprob,
)
from paged_stream.worker.copies import CacheCopies
from paged_stream.worker.cuda_graphs import DecodeGraphs, GraphLimits, Recorder
from paged_stream.worker.decode_loop import (
    DecodeBatch,
    continue_decode,
    move_batch,
    prepare_decode,
    run_decode_step,
    start_collecting,
)
from paged_stream.worker.embedding import unit_vectors
from paged_stream.worker.input_batch import build_forward_batch
from paged_stream.worker.kv_cache import KVCache
from paged_stream.worker.lanes import make_lanes
from paged_stream.worker.layer_check import LayerCheck
from paged_stream.worker.logits import not_finite
from paged_stream.worker.parking import ParkedStore
from paged_stream.worker.sampler import Sampled, prepare_draw, sample, token_logprobs
from paged_stream.worker.staging import to_device

# Rows of logits held at once for prompt log-probabilities. On a CPU, what the allocator takes from
# the system anew each time costs more than the head loses by seeing fewer rows: 64 x 49152 in
# float32 is 13 MB, which it keeps.
_LOGPROB_ROWS = {"cpu": 64, "cuda": 256}


class ModelRunner:
    """Runs scheduled steps on one model and one cache."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVCache,
        parked: ParkedStore,
        block_size: int,
        layer_check: LayerCheck | None = None,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.parked = parked
        self.block_size = block_size
        self.device = kv_cache.tensor.device
        self.copies = CacheCopies(kv_cache, *make_lanes(self.device))
        self.graphs: DecodeGraphs | None = None
        self.adapters: dict[str, LoadedAdapter] = {}  # that sequences may have, by their keys
        self._decode_batch: DecodeBatch | None = None  # of the last steps that went together
        self._layer_check = layer_check
        if layer_check is not None:
            model.watch = layer_check.note

    @torch.inference_mode()
    def record_graphs(self, limits: GraphLimits, recorder: Recorder) -> None:
        """Record steps of batches that only decode; from then on such batches play them."""
        self.graphs = DecodeGraphs(limits, self._decode_step, recorder, self.device)

    def execute(self, output: SchedulerOutput) -> ModelOutput:
        return self.submit(output)()

    @torch.inference_mode()
    def submit(self, output: SchedulerOutput) -> Callable[[], ModelOutput]:
        """Start computing; what comes back waits for the result."""
        plays = self.graphs is not None and all(s.decodes_alone for s in output.sequences)
        if output.num_steps == 1 and not output.follows and not plays:
            result = self._step(output)
            return lambda: result
        self.copies.settle()
        batch = self._prepare_decode(output)
        if self.graphs is not None and self.graphs.holds(batch):
            self.graphs.play(batch, output.num_steps)
        else:
            for _ in range(output.num_steps):
                self._decode_step(batch)
        collect = start_collecting(batch, output.num_steps)
        return lambda: _several_steps(output, collect())

    def _prepare_decode(self, output: SchedulerOutput) -> DecodeBatch:
        """The input of several steps; the last ones' if these follow them."""
        batch = self._decode_batch
        if output.follows:
            assert batch is not None
            continue_decode(batch, output)
            return batch
        batch = prepare_decode(output, self.block_size, self._step_adapters(output))
        if self.graphs is not None and self.graphs.limits.take(batch):
            batch = self.graphs.load(batch)
        else:
            batch = move_batch(batch, self.device)
        self._decode_batch = batch
        return batch

    def _step_adapters(self, output: SchedulerOutput) -> StepAdapters | None:
        keys = [sequence.adapter for sequence in output.sequences]
        if not any(keys):
            return None
        lengths = [len(sequence.token_ids) for sequence in output.sequences]
        return step_adapters(keys, lengths, self.adapters, self.device)

    def _decode_step(self, batch: DecodeBatch) -> None:
        run_decode_step(self.model, self.kv_cache.layers, batch)

    def _step(self, output: SchedulerOutput) -> ModelOutput:
        batch = build_forward_batch(output, self.block_size, self.device)
        assert batch.host is not None
        bounds: list[int] = batch.host.query_start_loc.tolist()
        draw = prepare_draw(output.sequences, bounds[1:], self.device)
        if self._layer_check is not None:
            self._layer_check.begin()
        hidden = self.model(batch, self.copies.layers(), self._step_adapters(output))
        result = ModelOutput(
            token_ids=[[] for _ in output.sequences],
            logprobs=[None] * len(output.sequences),
            prompt_logprobs=[[] for _ in output.sequences],
            errors=[None] * len(output.sequences),
        )
        for i, (sequence, start, stop) in enumerate(
            zip(output.sequences, bounds, bounds[1:], strict=False)
        ):
            if sequence.sampling_params.prompt_logprobs is not None:
                entries = self._prompt_logprobs(hidden[start:stop], sequence)
                result.prompt_logprobs[i], result.errors[i] = _checked(entries, sequence)
        self._embed(hidden, output.sequences, bounds, result)
        if draw is not None:
            if len(draw.places) < hidden.shape[0]:
                hidden = hidden[draw.rows]
            logits = self.model.compute_logits(hidden)
            if self._layer_check is not None:
                self._layer_check.note_rows("the head", draw.rows, logits)
            _count_right(output, sample(logits, draw), result)
        if self._layer_check is not None:
            for i, error in enumerate(result.errors):
                if error and (part := self._layer_check.first_part(bounds[i], bounds[i + 1])):
                    result.errors[i] = f"{error}; the first that were not are those of {part}"
        return result

    @torch.inference_mode()
    def apply(self, operations: Sequence[KVOperation]) -> None:
        """Carry out what the scheduler wants done to the cache, in order."""
        for operation in operations:
            match operation:
                case CopyBlock(source, destination):
                    self.copies.settle()
                    self.kv_cache.copy_block(source, destination)
                case MoveTokens(source, destination, distance):
                    model = self.model
                    self.copies.settle()
                    self.kv_cache.move(
                        self._slots(source),
                        self._slots(destination),
                        distance,
                        [model.rotaries[index] for index in model.layer_rotary],
                        interleaved=model.config.interleaved_rotary,
                    )
                case ParkTokens(key, slots):
                    self.parked.put(key, *self.copies.copy_out(self._slots(slots)))
                case RestoreTokens(key, slots):
                    tokens = self.parked.read(key)
                    assert len(slots) == tokens.num_tokens, f"{key} has other tokens than it should"
                    self.copies.copy_in(self._slots(slots), tokens)
                    self.parked.drop(key)  # not before: what fails may be tried again
                case DropParked(key):
                    self.parked.drop(key)

    @torch.inference_mode()
    def read(self, slots: array[int]) -> KVTokens:
        """Copy tokens out of the cache."""
        self.copies.settle()
        return self.kv_cache.read(self._slots(slots))

    def _slots(self, slots: array[int]) -> torch.Tensor:
        if not slots:  # of which torch makes no tensor
            return torch.empty(0, dtype=torch.int64, device=self.device)
        (moved,) = to_device([torch.frombuffer(slots, dtype=torch.int64)], self.device)
        return moved

    @staticmethod
    def _embed(
        hidden: torch.Tensor,
        sequences: Sequence[ScheduledSequence],
        bounds: Sequence[int],
        result: ModelOutput,
    ) -> None:
        """Add the embeddings of the sequences that end here and want one."""
        embedded = [i for i, sequence in enumerate(sequences) if sequence.embeds]
        if not embedded:
            return
        vectors = unit_vectors(hidden[[bounds[i + 1] - 1 for i in embedded]])
        for i, vector in zip(embedded, vectors, strict=True):
            if vector is None:
                position = sequences[i].num_tokens - 1
                result.errors[i] = f"the hidden state at position {position} is not finite, or 0"
            else:
                result.embeddings[sequences[i].seq_id] = vector

    def _prompt_logprobs(
        self, hidden: torch.Tensor, sequence: ScheduledSequence
    ) -> list[TokenLogprob]:
        """Score the known tokens that follow those of the chunk."""
        num_top = sequence.sampling_params.prompt_logprobs
        assert num_top is not None
        known = sequence.num_prompt_tokens - sequence.num_computed_tokens - 1
        targets = sequence.token_ids[1:]
        if not sequence.samples:
            targets.append(sequence.next_token_id)
        targets = targets[: max(0, known)]
        result = []
        rows = _LOGPROB_ROWS[self.device.type]
        for start in range(0, len(targets), rows):
            ids = targets[start : start + rows]
            logits = self.model.compute_logits(hidden[start : start + len(ids)])
            logprobs = torch.log_softmax(logits, dim=-1)
            result += token_logprobs(logprobs, ids.tolist(), [num_top] * len(ids))
        return result


def _count_right(output: SchedulerOutput, sampled: Sampled, result: ModelOutput) -> None:
    """Give each sequence what was sampled for it, up to its first wrong guess."""
    drawn = zip(*sampled, strict=True)
    for i, sequence in enumerate(output.sequences):
        if not sequence.samples:
            continue
        guesses = sequence.token_ids[sequence.num_known_tokens :]
        rows = list(itertools.islice(drawn, 1 + len(guesses)))
        for (token_id, logprob, error), guess in zip(rows, [*guesses, None], strict=True):
            result.logprobs[i], result.errors[i] = logprob, result.errors[i] or error
            if token_id != ops.NO_TOKEN:
                result.token_ids[i].append(token_id)
            if token_id != guess:
                break


def _several_steps(output: SchedulerOutput, generated: list[list[int]]) -> ModelOutput:
    """What several steps have generated; behind it `NO_TOKEN`, if no token could be sampled."""
    count = len(output.sequences)
    token_ids: list[list[int]] = []
    errors: list[str | None] = [None] * count
    for index, (sequence, tokens) in enumerate(zip(output.sequences, generated, strict=False)):
        if tokens and tokens[-1] == ops.NO_TOKEN:
            tokens.pop()
            errors[index] = not_finite(sequence.num_tokens + len(tokens))
        token_ids.append(tokens)
    return ModelOutput(token_ids, [None] * count, [[] for _ in range(count)], errors)


def _checked(
    entries: list[TokenLogprob], sequence: ScheduledSequence
) -> tuple[list[TokenLogprob], str | None]:
    """Scores up to the first for which logits were not finite, which makes it NaN, and an error if
    there is one."""
    for count, entry in enumerate(entries):
        if math.isnan(entry.logprob):
            return entries[:count], not_finite(sequence.num_computed_tokens + 1 + count)
    return entries, None
