"""Perplexity over long text, of the four attention patterns that the StreamingLLM paper compares.

`measure` scores a text as a `Variant` says, through this engine and, but for recomputation, in one
stream, chunk by chunk. A `Score` holds the log-likelihood per span of positions: memory does not
grow with the text.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.stream import Stream
from paged_stream.evaluation.corpus import Corpus, take
from paged_stream.evaluation.memory import resident_bytes
from paged_stream.evaluation.variants import Variant
from paged_stream.models.formats.resolve import resolve_model, resolve_tokenizer
from paged_stream.models.loader import load_config
from paged_stream.system.progress_bar import progress_bar
from paged_stream.text.tokenizer import Tokenizer, load_tokenizer

Logprobs = Sequence[float | None]
Predict = Callable[[list[int]], Logprobs]


@dataclass(slots=True, kw_only=True)
class Span:
    """A stretch of predictions, the first token's successor being prediction 0.

    Args:
        start: first prediction; ``stop`` is the one behind the last.
        nll: sum of negative log-probabilities of the ``count`` that were scored.
        sampled_nll: the same over those that are multiples of ``sample_every``: what recomputation
            is compared with.
        seconds: that scoring took.
        rss: resident memory of the process at the end, bytes.
    """

    start: int
    stop: int
    nll: float = 0.0
    count: int = 0
    sampled_nll: float = 0.0
    sampled_count: int = 0
    seconds: float = 0.0
    rss: int = 0

    def add(self, logprobs: Logprobs, sample_every: int | None) -> None:
        """Count the log-probabilities of the next predictions; ``None`` is one not scored."""
        for logprob in logprobs:
            if logprob is not None:
                self.nll -= logprob
                self.count += 1
                if sample_every and self.stop % sample_every == 0:
                    self.sampled_nll -= logprob
                    self.sampled_count += 1
            self.stop += 1

    @property
    def perplexity(self) -> float | None:
        return perplexity_of(self.nll, self.count)


def perplexity_of(nll: float, count: int) -> float | None:
    """``None`` if nothing was scored; infinite where it is too large for a float."""
    if not count:
        return None
    try:
        return math.exp(nll / count)
    except OverflowError:
        return math.inf


@dataclass(slots=True, kw_only=True)
class Score:
    """What scoring a text in one way gave, span by span.

    ``text_tokens`` says after how many tokens a run that cycles through its texts begins anew.
    """

    variant: Variant
    spans: list[Span] = field(default_factory=list)
    text_tokens: int | None = None

    def perplexity(self, start: int = 0, stop: int | None = None) -> float | None:
        """Over the predictions in ``[start, stop)``, as far as whole spans lie in it."""
        spans = [s for s in self.spans if s.start >= start and (stop is None or s.stop <= stop)]
        return perplexity_of(math.fsum(s.nll for s in spans), sum(s.count for s in spans))

    def sampled_perplexity(self) -> float | None:
        """Over the predictions at which recomputation was sampled."""
        return perplexity_of(
            math.fsum(s.sampled_nll for s in self.spans), sum(s.sampled_count for s in self.spans)
        )

    @property
    def num_predictions(self) -> int:
        return self.spans[-1].stop if self.spans else 0

    @property
    def seconds(self) -> float:
        return math.fsum(span.seconds for span in self.spans)


class Scorer:
    """Scores predictions one after the other, span by span.

    Args:
        every: predictions per span.
        sample_every: recomputation predicts only at the multiples of this; the others sum these
            up separately, too.
        on_span: called after each span.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        every: int,
        sample_every: int | None = None,
        on_span: Callable[[Span], None] | None = None,
        progress: Any = None,
    ) -> None:
        self.score = Score(variant=variant)
        self.every = every
        self.sample_every = sample_every
        self._on_span = on_span
        self._progress = progress

    def run(self, predict: Predict, token_ids: Iterator[int], step: int) -> None:
        """Feed ``predict`` at most ``step`` tokens at a time, and never across the end of a span,
        so that every span is a point to stop at."""
        start = self.score.num_predictions
        while True:
            span = Span(start=start, stop=start)
            started = time.perf_counter()
            end = (start // self.every + 1) * self.every
            while piece := take(token_ids, min(step, end - span.stop)):
                span.add(predict(piece), self.sample_every)
                if self._progress is not None:
                    self._progress.update(len(piece))
            if span.stop == start:
                return
            start = span.stop
            span.seconds = time.perf_counter() - started
            span.rss = resident_bytes()
            self.score.spans.append(span)
            if self._on_span is not None:
                self._on_span(span)


def tokenizer_of(settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        settings: fields of `EngineConfig`, ``model`` among them.

    Raises:
        ValueError: there is no such model, or it has none.
    """
    tokenizer, cache_dir = settings.get("tokenizer"), settings.get("cache_dir")
    files = resolve_model(settings["model"], cache_dir=cache_dir, with_tokenizer=tokenizer is None)
    return load_tokenizer(*resolve_tokenizer(files, tokenizer, cache_dir=cache_dir))


def make_engine(variant: Variant, num_tokens: int, settings: dict[str, Any]) -> LLMEngine:
    """An engine whose streams see what the variant says, on a text of so many tokens.

    Raises:
        ValueError: as `LLMEngine`.
    """
    window = variant.window_size
    files = resolve_model(
        settings["model"],
        cache_dir=settings.get("cache_dir"),
        with_tokenizer=settings.get("tokenizer") is None,
    )
    if window is None and not load_config(files).learned_positions:
        window = num_tokens  # may be beyond the trained length: that is what dense means
    return LLMEngine(
        EngineConfig(
            num_sink_tokens=variant.num_sink_tokens,
            window_size=window,
            max_num_seqs=1,
            enable_prefix_caching=False,
            **settings,
        )
    )


def measure(
    variant: Variant,
    texts: Sequence[str],
    *,
    engine: dict[str, Any],
    num_tokens: int | None,
    every: int | None = None,
    sample_every: int | None = None,
    show_progress: bool = False,
) -> Score:
    """Score the predictions of tokens 1 to ``num_tokens``, the texts' first token being number 0.

    Args:
        engine: fields of `EngineConfig`, ``model`` among them; sinks and window are the variant's.
        num_tokens: predictions; all that the texts have if they have fewer, or for ``None``.
        every: predictions per span of the result; a 32nd of them by default.
        sample_every: see `Scorer`; ``None`` recomputes for every prediction.

    Raises:
        ValueError: as `LLMEngine`, or texts of fewer than two tokens.
    """
    corpus = Corpus(texts, tokenizer_of(engine))
    total = corpus.num_predictions(num_tokens)
    runner = make_engine(variant, total + 1, engine)
    token_ids = corpus.token_ids(0, total + 1)
    with progress_bar(
        total=total, unit=" tok", desc=variant.name, disable=not show_progress
    ) as progress:
        scorer = Scorer(
            variant,
            every=every or -(-total // 32),
            sample_every=sample_every,
            progress=progress,
        )
        if variant.recompute:
            recompute(runner, scorer, token_ids)
        else:
            with runner.open_stream() as stream:
                score_stream(stream, runner, scorer, token_ids)
    return scorer.score


def score_stream(
    stream: Stream, engine: LLMEngine, scorer: Scorer, token_ids: Iterator[int]
) -> None:
    """Score what follows in a stream, in chunks of one step each. Into an empty one, the first
    token goes first, which nothing predicts."""
    unscored = 0
    variant = scorer.score.variant
    if not stream.position:
        if variant.line_break_sinks:
            count = len(take(token_ids, variant.num_sink_tokens))
            line_breaks = engine.encode("\n", continues=True)[-1:] * count
            token_ids = itertools.chain(line_breaks, token_ids)
            unscored = count - 1
        stream.append(take(token_ids, 1))

    def predict(piece: list[int]) -> Logprobs:
        nonlocal unscored
        scores = stream.score(piece)
        hidden = min(unscored, len(scores))
        unscored -= hidden
        return [None] * hidden + scores[hidden:]

    scorer.run(predict, token_ids, engine.config.max_num_batched_tokens)


def recompute(engine: LLMEngine, scorer: Scorer, token_ids: Iterator[int]) -> None:
    """Score each sampled token from the last ``cache_size`` ones before it, computed as a text of
    their own: no key or value is used twice."""
    sample_every = scorer.sample_every or 1
    visible: deque[int] = deque(take(token_ids, 1), maxlen=scorer.score.variant.cache_size)
    prediction = 0

    def predict(piece: list[int]) -> Logprobs:
        nonlocal prediction
        scores: list[float | None] = []
        for token_id in piece:
            score = None
            if prediction % sample_every == 0:
                with engine.open_stream() as stream:
                    stream.append(list(visible))
                    (score,) = stream.score([token_id])
            scores.append(score)
            visible.append(token_id)
            prediction += 1
        return scores

    scorer.run(predict, token_ids, sample_every)
