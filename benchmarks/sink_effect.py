"""Perplexity with and without sink tokens, on real text, against independent figures.

The figures come from banded masks over transformers' weights, made without this engine; the
engine scores the same texts through its paged cache, in chunks, in float32. A measurement that is
further than `LIMIT_PERCENT` from its figure fails the run.

    python -m benchmarks.sink_effect            # all of SmolLM2: on two cores, six minutes
    python -m benchmarks.sink_effect --quick    # 2,048 tokens at most
    python -m benchmarks.sink_effect --model qwen2.5-coder-0.5b    # or gemma-3-270m
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from unittest import mock

from benchmarks.harness import parser, write_results
from benchmarks.texts import austen
from benchmarks.weights import model_path
from paged_stream import LLM
from paged_stream.worker import model_runner

LIMIT_PERCENT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One text scored in one way.

    Args:
        figures: ``{(first, last): perplexity}``, over the predictions of tokens first + 1 to last,
            the text's first token being number 0.
        window_size: ``None`` is the model's trained length, beyond which no text below goes.
        clamped: ``False`` lets the distance to the sink tokens grow: the ablation.
    """

    text: str
    num_sink_tokens: int
    window_size: int | None
    figures: dict[tuple[int, int], float]
    clamped: bool = True

    @property
    def name(self) -> str:
        if self.window_size is None:
            return "dense"
        unclamped = "" if self.clamped else ", unclamped"
        return f"{self.num_sink_tokens}+{self.window_size}{unclamped}"

    @property
    def num_tokens(self) -> int:
        return max(last for _, last in self.figures)

    def first(self, num_tokens: int) -> Case | None:
        """The same case cut to ``num_tokens``; None if no figure is left."""
        figures = {span: ppl for span, ppl in self.figures.items() if span[1] <= num_tokens}
        return replace(self, figures=figures) if figures else None


def first(figures: dict[int, float]) -> dict[tuple[int, int], float]:
    return {(0, last): perplexity for last, perplexity in figures.items()}


PERSUASION = (
    Case(  # nothing leaves the window
        text="persuasion",
        num_sink_tokens=0,
        window_size=None,
        figures=first({1024: 35.52, 2048: 40.18, 4096: 37.34, 6144: 35.73, 8192: 34.44}),
    ),
    Case(
        text="persuasion",
        num_sink_tokens=4,
        window_size=2044,
        figures=first({2048: 40.18, 4096: 37.61, 6144: 36.05, 8192: 34.80}),
    ),
    Case(
        text="persuasion",
        num_sink_tokens=0,
        window_size=2048,
        figures=first({2048: 40.18, 4096: 48.78, 6144: 48.68, 8192: 49.58}),
    ),
    Case(
        text="persuasion",
        num_sink_tokens=4,
        window_size=508,
        figures=first({1024: 36.03, 2048: 42.10, 4096: 40.05, 6144: 38.31}),
    ),
    Case(  # harmless while distances stay within what the model was trained on
        text="persuasion",
        num_sink_tokens=4,
        window_size=508,
        figures=first({1024: 36.03, 2048: 42.26, 4096: 40.25, 6144: 38.58}),
        clamped=False,
    ),
    Case(
        text="persuasion",
        num_sink_tokens=0,
        window_size=512,
        figures=first({1024: 54.28, 2048: 65.89, 4096: 63.67, 6144: 60.84}),
    ),
)
EMMA_LAST = (32768 - 4096, 32768)
EMMA = (
    Case(
        text="emma",
        num_sink_tokens=4,
        window_size=508,
        figures={(0, 32768): 32.27, EMMA_LAST: 36.21},
    ),
    Case(
        text="emma",
        num_sink_tokens=0,
        window_size=512,
        figures={(0, 32768): 52.86, EMMA_LAST: 57.95},
    ),
    Case(
        text="emma",
        num_sink_tokens=4,
        window_size=508,
        figures={(0, 32768): 154.07, EMMA_LAST: 346.95},
        clamped=False,
    ),
)
QWEN = (
    Case(text="persuasion", num_sink_tokens=0, window_size=None, figures=first({4096: 58.72})),
    Case(text="persuasion", num_sink_tokens=4, window_size=508, figures=first({4096: 65.49})),
    Case(text="persuasion", num_sink_tokens=0, window_size=512, figures=first({4096: 97.00})),
)
GEMMA = (
    Case(
        text="persuasion",
        num_sink_tokens=0,
        window_size=None,
        figures=first({1024: 33.76, 2048: 36.18, 8192: 32.02}),
    ),
)
CASES = {
    "smollm2-135m-instruct": PERSUASION + EMMA,
    "qwen2.5-coder-0.5b": QWEN,
    "gemma-3-270m": GEMMA,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    text: str
    case: str
    tokens: str
    perplexity: float
    figure: float
    difference_percent: float
    seconds: float


# ---- The one hook into the engine's inside: the ablation is not something a user can ask for. ----
@contextmanager
def unclamped_sinks() -> Iterator[None]:
    """Queries meet the sink tokens at their true distance, as if no position were clamped."""
    build = model_runner.build_forward_batch

    def without_sink_positions(*args, **kwargs):
        batch = build(*args, **kwargs)
        return replace(batch, attention=replace(batch.attention, sink_positions=None))

    with mock.patch.object(model_runner, "build_forward_batch", without_sink_positions):
        yield


def measure(model: str, case: Case) -> list[Measurement]:
    llm = LLM(
        model_path(model),
        num_sink_tokens=case.num_sink_tokens,
        window_size=case.window_size,
        max_num_seqs=1,
        dtype="float32",
    )
    # The last token is predicted by the one before it, so one more is needed than is predicted.
    token_ids = llm.engine.encode(austen(case.text))[: case.num_tokens + 1]
    with nullcontext() if case.clamped else unclamped_sinks():
        started = time.perf_counter()
        logprobs = llm.score(token_ids)[1:]
        seconds = time.perf_counter() - started
    measurements = []
    for (start, stop), figure in case.figures.items():
        perplexity = math.exp(-math.fsum(logprobs[start:stop]) / (stop - start))
        measurements.append(
            Measurement(
                text=case.text,
                case=case.name,
                tokens=f"{start}-{stop}",
                perplexity=perplexity,
                figure=figure,
                difference_percent=100 * (perplexity / figure - 1),
                seconds=seconds,
            )
        )
    return measurements


def report(measurements: list[Measurement]) -> None:
    print(f"{'text':<12}{'sinks+window':<20}{'tokens':<14}", end="")
    print(f"{'ppl':>9}{'figure':>9}{'diff %':>9}{'s':>8}")
    for m in measurements:
        mark = "" if abs(m.difference_percent) <= LIMIT_PERCENT else "  <-- differs"
        print(f"{m.text:<12}{m.case:<20}{m.tokens:<14}{m.perplexity:>9.3f}{m.figure:>9.2f}", end="")
        print(f"{m.difference_percent:>+9.3f}{m.seconds:>8.1f}{mark}")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--model", choices=CASES, default=next(iter(CASES)))
    options.add_argument("--quick", action="store_true", help="2,048 tokens at most")
    arguments = options.parse_args()

    cases = CASES[arguments.model]
    if arguments.quick:
        cases = [short for case in cases if (short := case.first(2048))]
    measurements = []
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.text} {case.name}", file=sys.stderr)
        measurements += measure(arguments.model, case)
        shared = {"model": arguments.model, "dtype": "float32"}
        rows = [shared | asdict(measurement) for measurement in measurements]
        write_results(f"sink_effect_{arguments.model}", rows)  # survives a Ctrl-C
    report(measurements)
    return int(any(abs(m.difference_percent) > LIMIT_PERCENT for m in measurements))


if __name__ == "__main__":
    raise SystemExit(main())
