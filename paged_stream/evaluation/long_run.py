"""A long scoring run on disk: its stream, and one JSON line per span that it has scored.

The stream is saved after its span's line is written, so a run that ends anywhere leaves a stream
and lines that reach at least as far; what goes beyond the stream is dropped on the way back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.stream import Stream
from paged_stream.evaluation.corpus import Corpus
from paged_stream.evaluation.perplexity import (
    Score,
    Scorer,
    Span,
    make_engine,
    score_stream,
    tokenizer_of,
)
from paged_stream.evaluation.variants import Variant
from paged_stream.system.progress_bar import progress_bar


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run is kept.

    Args:
        path: of the saved stream; the lines go to a file of that name and ``.jsonl``.
        header: what the run scores and how; a run is continued only by one of the same.
    """

    path: Path
    header: dict[str, Any]

    @property
    def lines(self) -> Path:
        return self.path.with_name(self.path.name + ".jsonl")

    def start(self) -> None:
        """Begin a run.

        Raises:
            ValueError: there is one already.
            OSError: the files cannot be written.
        """
        if self.path.exists():  # lines alone are of a run that ended before its first save
            raise ValueError(
                f"save_stream: {self.path} exists; continue that run with resume, or name another"
            )
        self.lines.write_text(json.dumps(self.header) + "\n")

    def resume(self, engine: LLMEngine) -> tuple[Stream, list[Span]]:
        """Load the stream and what was scored up to its end.

        Raises:
            ValueError: the files are missing or broken, or belong to a run of something else.
        """
        if not self.path.exists():
            raise ValueError(f"resume: there is no {self.path}; start without resume")
        try:
            header, *rows = map(json.loads, self.lines.read_text().splitlines())
            spans = [Span(**row) for row in rows]
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"resume: {self.lines} is missing or damaged: {error}") from None
        for name, value in self.header.items():
            if header.get(name) != value:
                raise ValueError(
                    f"resume: {self.path} was started with {name}={header.get(name)!r}, not "
                    f"{value!r}"
                )
        stream = engine.load_stream(self.path)
        kept = [span for span in spans if span.stop < stream.position]
        if not kept or kept[-1].stop != stream.position - 1:
            raise ValueError(f"resume: {self.lines} does not reach to the end of {self.path}")
        lines = [json.dumps(line) for line in (self.header, *map(asdict, kept))]
        self.lines.write_text("\n".join(lines) + "\n")
        return stream, kept

    def save(self, stream: Stream, span: Span) -> None:
        """Keep a span, and the stream as it is behind it."""
        with self.lines.open("a") as file:
            file.write(json.dumps(asdict(span)) + "\n")
        stream.save(self.path)


def measure_long(
    variant: Variant,
    texts: Sequence[str],
    *,
    engine: dict[str, Any],
    num_tokens: int | None,
    every: int,
    cycle: bool = False,
    save_stream: Path,
    resume: bool = False,
    show_progress: bool = False,
) -> Score:
    """As `perplexity.measure`, in one stream that is saved after every span, so that the run can
    be continued: by ``resume``, with the same texts and settings and perhaps more tokens.

    Args:
        num_tokens: predictions; ``None`` is all that the texts have.
        cycle: begin the texts anew when they end.

    Raises:
        ValueError: as `measure`, `Checkpoint.start` and `Checkpoint.resume`.
    """
    if variant.window_size is None or variant.recompute:
        raise ValueError(f"save_stream needs a stream with a window, and {variant.name} has none")
    corpus = Corpus(texts, tokenizer_of(engine), cycle=cycle)
    total = corpus.num_predictions(num_tokens)
    runner = make_engine(variant, total + 1, engine)
    header = {
        "variant": variant.name,
        "texts": corpus.digest,
        "cycle": cycle,
        "every": every,
    }
    checkpoint = Checkpoint(save_stream, header)
    spans: list[Span] = []
    if resume:
        stream, spans = checkpoint.resume(runner)
    else:
        checkpoint.start()
        stream = runner.open_stream()
    token_ids = corpus.token_ids(stream.position, total + 1)
    done = spans[-1].stop if spans else 0
    bar = progress_bar(
        total=total, initial=done, unit=" tok", desc=variant.name, disable=not show_progress
    )
    with stream, bar as progress:
        scorer = Scorer(
            variant,
            every=every,
            progress=progress,
            on_span=lambda span: checkpoint.save(stream, span),
        )
        scorer.score.spans += spans
        scorer.score.text_tokens = corpus.num_text_tokens
        score_stream(stream, runner, scorer, token_ids)
    return scorer.score
