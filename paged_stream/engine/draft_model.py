"""A second, smaller model that guesses what the first will sample.

It has a scheduler and a cache of its own, in which each sequence has a stream. Before it guesses,
the stream is brought to where the sequence is: wrong guesses are rewound, and what came since is
appended. After whatever else was done to the sequence, it begins anew with what is visible.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence as Items
from dataclasses import replace

from paged_stream.config import EngineConfig
from paged_stream.engine.stepper import Stepper
from paged_stream.engine.windows import resolve_sink_window
from paged_stream.executor.local import LocalExecutor
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.scheduler.scheduler import Scheduler
from paged_stream.scheduler.scheduler_config import SchedulerConfig
from paged_stream.scheduler.sequence import Sequence
from paged_stream.scheduler.speculation import PromptLookup

logger = logging.getLogger(__name__)


class DraftModel:
    """A `Guesser` for sequences of another model with the same vocabulary.

    Attributes:
        num_tokens: the most that are guessed at once.

    Raises:
        ValueError: the model cannot be loaded, or has another vocabulary.
    """

    def __init__(self, config: EngineConfig, vocab_size: int, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        files = resolve_model(config.model, cache_dir=config.cache_dir, with_tokenizer=False)
        model_config = load_config(files)
        if model_config.vocab_size != vocab_size:
            raise ValueError(
                f"speculative_config['model'] must have the model's vocabulary of {vocab_size} "
                f"tokens, but {str(config.model)!r} has {model_config.vocab_size}"
            )
        self._window = resolve_sink_window(model_config, config.num_sink_tokens, config.window_size)
        executor = LocalExecutor(config, files, model_config, self._window)
        self._scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=executor.cache_plan.num_blocks,
                block_size=config.block_size,
                max_num_seqs=config.actual_max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=model_config.max_position_embeddings,
                num_decode_steps=num_tokens,
            )
        )
        self._stepper = Stepper(self._scheduler, executor)
        self._has_failed = False
        self._offsets: dict[int, int] = {}  # from positions of a stream here to the sequence's

    def close(self) -> None:
        self._stepper.close()

    def forget(self, seq_id: int) -> None:
        """A sequence is gone."""
        self._offsets.pop(seq_id, None)
        self._scheduler.close(seq_id)

    def guess(self, wanted: Items[tuple[Sequence, int]]) -> list[array[int]]:
        """As `Guesser.guess`. Random tokens are drawn as the sequences draw theirs. After a failure
        nothing is guessed any more, which costs time and no token."""
        if not self._has_failed:
            try:
                return self._guess(wanted)
            except Exception:
                logger.exception("the draft model has failed; nothing is guessed any more")
                self._has_failed = True
        return [array("i") for _ in wanted]

    def _guess(self, wanted: Items[tuple[Sequence, int]]) -> list[array[int]]:
        guesses = {sequence.seq_id: array("i") for sequence, _ in wanted}
        for sequence, count in wanted:
            if self._follow(sequence, count):
                params = replace(sequence.sampling_params, max_tokens=count, ignore_eos=True)
                self._scheduler.start_turn(sequence.seq_id, params, seed=sequence.seed)
        while self._scheduler.has_unfinished():
            step = self._stepper.step(set, lambda output: output, lambda seq_id, token_id: False)
            for update in step.updates if step is not None else ():
                guesses[update.seq_id].extend(update.token_ids)
            for seq_id in self._scheduler.take_lost():
                self._offsets.pop(seq_id, None)
        return list(guesses.values())

    def _follow(self, sequence: Sequence, count: int) -> bool:
        """Bring a sequence's stream to where the sequence is; whether it has room to go on."""
        seq_id = sequence.seq_id
        stream = self._scheduler.sequences.get(seq_id)
        if stream is not None and not self._rewind(stream, sequence):
            self.forget(seq_id)
            stream = None
        if stream is None:
            seen = sequence.visible_token_ids()
            stream = self._scheduler.open(seq_id, self._window, is_stream=True)
            self._offsets[seq_id] = sequence.num_tokens - len(seen)
            new = seen
        else:
            start = stream.num_tokens + self._offsets[seq_id]
            new = sequence.token_ids(start, sequence.num_tokens)
        if stream.num_tokens + len(new) + count > stream.limit:
            return False
        if new:
            self._scheduler.append(seq_id, new)
        return stream.has_next

    def _rewind(self, stream: Sequence, sequence: Sequence) -> bool:
        """Take back what the sequence does not have; False if that is no matter of its end."""
        offset = self._offsets[stream.seq_id]
        sinks = self._window.num_sink_tokens
        first = max(stream.first_kept, sinks, sequence.first_visible - offset)
        end = min(stream.num_tokens, sequence.num_tokens - offset)
        if first >= end:
            return False
        ours = stream.token_ids(first, end)
        theirs = sequence.token_ids(first + offset, end + offset)
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs, strict=True), first)
            end = next(position for position, (our, their) in pairs if our != their)
        if end <= first:
            return False
        if end < stream.num_tokens:
            self._scheduler.rewind(stream.seq_id, end)
        return True


def make_guesser(config: EngineConfig, vocab_size: int) -> PromptLookup | DraftModel | None:
    """What ``speculative_config`` asks for.

    Raises:
        ValueError: as `DraftModel`.
    """
    speculation = config.speculative_config
    if speculation is None:
        return None
    num_tokens = speculation["num_speculative_tokens"]
    if speculation["method"] == "ngram":
        return PromptLookup(
            num_tokens=num_tokens,
            max_ngram=speculation["prompt_lookup_max"],
            min_ngram=speculation["prompt_lookup_min"],
        )
    own = replace(
        config,
        model=speculation["model"],
        dtype="auto",
        quantization="auto",
        merge_lora=None,
        lora_modules=None,
        speculative_config=None,
        tensor_parallel_size=1,
    )
    return DraftModel(own, vocab_size, num_tokens)
