"""One forward pass: inputs, model, sampling. Holds no state of any sequence but K and V, in the
cache or parked beside it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from paged_stream.kv_tokens import KVTokens
from paged_stream.models.decoder import Decoder
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
from paged_stream.worker.input_batch import build_forward_batch
from paged_stream.worker.kv_cache import KVCache
from paged_stream.worker.parking import ParkedStore
from paged_stream.worker.sampler import sample, token_logprobs

# Rows of logits held at once for prompt log-probabilities: 256 x 49152 in float32 is 50 MB.
_LOGPROB_ROWS = 256


class ModelRunner:
    """Runs scheduled steps on one model and one cache."""

    def __init__(
        self, model: Decoder, kv_cache: KVCache, parked: ParkedStore, block_size: int
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.parked = parked
        self.block_size = block_size
        self.device = kv_cache.tensor.device

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> ModelOutput:
        batch = build_forward_batch(output, self.block_size, self.device)
        hidden = self.model(batch.token_ids, batch.attention, self.kv_cache.layers)
        bounds = batch.query_start_loc
        prompt_logprobs = [
            []
            if sequence.sampling_params.prompt_logprobs is None
            else self._prompt_logprobs(hidden[start:stop], sequence)
            for sequence, start, stop in zip(output.sequences, bounds, bounds[1:], strict=False)
        ]
        sampled = [i for i, sequence in enumerate(output.sequences) if sequence.samples]
        token_ids = [-1] * len(output.sequences)
        logprobs: list[TokenLogprob | None] = [None] * len(output.sequences)
        if sampled:
            if len(sampled) < hidden.shape[0]:
                hidden = hidden[[bounds[i + 1] - 1 for i in sampled]]
            logits = self.model.compute_logits(hidden)
            results = sample(logits, [output.sequences[i] for i in sampled])
            for i, token_id, logprob in zip(sampled, *results, strict=True):
                token_ids[i], logprobs[i] = token_id, logprob
        return ModelOutput(token_ids, logprobs, prompt_logprobs)

    @torch.inference_mode()
    def apply(self, operations: Sequence[KVOperation]) -> None:
        """Carry out what the scheduler wants done to the cache, in order."""
        for operation in operations:
            match operation:
                case CopyBlock(source, destination):
                    self.kv_cache.copy_block(source, destination)
                case MoveTokens(source, destination, distance):
                    model = self.model
                    self.kv_cache.move(
                        self._slots(source),
                        self._slots(destination),
                        distance,
                        [model.rotaries[index] for index in model.layer_rotary],
                        interleaved=model.config.interleaved_rotary,
                    )
                case ParkTokens(key, slots):
                    self.parked.put(key, self.read(slots))
                case RestoreTokens(key, slots):
                    self.kv_cache.write(self._slots(slots), self.parked.pop(key))
                case DropParked(key):
                    self.parked.drop(key)

    @torch.inference_mode()
    def read(self, slots: array[int]) -> KVTokens:
        """Copy tokens out of the cache."""
        return self.kv_cache.read(self._slots(slots))

    def _slots(self, slots: array[int]) -> torch.Tensor:
        if not slots:  # of which torch makes no tensor
            return torch.empty(0, dtype=torch.int64, device=self.device)
        return torch.frombuffer(slots, dtype=torch.int64).to(self.device)

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
        for start in range(0, len(targets), _LOGPROB_ROWS):
            ids = targets[start : start + _LOGPROB_ROWS]
            logits = self.model.compute_logits(hidden[start : start + len(ids)])
            result += token_logprobs(torch.log_softmax(logits, dim=-1), ids.tolist(), num_top)
        return result
