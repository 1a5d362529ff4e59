"""Perplexity with and without sink tokens, on real text, against independent figures.

The figures come from banded masks over transformers' weights, made without this engine; the
engine scores the same texts through its paged cache, in chunks, in float32. Each is over the same
predictions: N tokens have N - 1, and where the first token is ``<|endoftext|>``, the one that it
alone makes is left out. A measurement that is further than `LIMIT_PERCENT` from its figure fails
the run.

    python -m benchmarks.sink_effect            # all of SmolLM2: on two cores, ten minutes
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

from tokenizers import pre_tokenizers

from benchmarks.harness import QUICK_RESULTS, RESULTS, add_results_option, parser, write_results
from benchmarks.texts import NOVELS, austen
from benchmarks.weights import model_path
from paged_stream import LLMEngine
from paged_stream.evaluation.perplexity import make_engine, perplexity_of
from paged_stream.evaluation.variants import Variant
from paged_stream.worker import model_runner

LIMIT_PERCENT = 0.1  # figures such as 57.8 are rounded by 0.09 %
DIFFERS = 3  # exit status of a run that fails
BOS = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One text scored in one way.

    Args:
        text: one of `text_of`.
        figures: ``{(first, last): perplexity}``, over the predictions at ``[first:last]``, the one
            of the text's token number 1 being number 0.
        num_tokens: of the text, ``<|endoftext|>`` included.
        clamped: ``False`` lets the distance to the sink tokens grow: the ablation.
    """

    text: str
    variant: Variant
    figures: dict[tuple[int, int], float]
    num_tokens: int
    clamped: bool = True

    @property
    def name(self) -> str:
        return self.variant.name + ("" if self.clamped else ", unclamped")

    def first(self, last: int) -> Case | None:
        """The same case cut to ``last`` predictions; None if no figure is left."""
        figures = {span: ppl for span, ppl in self.figures.items() if span[1] <= last}
        num_tokens = min(self.num_tokens, last + 1)
        return replace(self, figures=figures, num_tokens=num_tokens) if figures else None


def text_of(name: str) -> str:
    """A novel, or ``emma, middle``, with ``<|endoftext|>`` in front or not."""
    if name in NOVELS:
        return austen(name)
    middle = austen("emma")[120_000:]
    return {
        "emma, middle": middle,
        f"{BOS} emma, middle": BOS + middle,
    }[name]


def of_text(
    text: str, variant: Variant, figures: dict[tuple[int, int], float], *, clamped=True
) -> Case:
    """A case whose text was no longer than its figures say."""
    num_tokens = max(last for _, last in figures)
    return Case(text=text, variant=variant, figures=figures, num_tokens=num_tokens, clamped=clamped)


def dense(text: str, figures: dict[tuple[int, int], float]) -> Case:
    return of_text(text, Variant.dense(), figures)


def case(
    text: str, sinks: int, window: int, figures: dict[tuple[int, int], float], *, clamped=True
) -> Case:
    return of_text(text, Variant.streaming(sinks, window), figures, clamped=clamped)


def first(figures: dict[int, float]) -> dict[tuple[int, int], float]:
    return {(0, last): perplexity for last, perplexity in figures.items()}


def middle(whole: float, later: float) -> dict[tuple[int, int], float]:
    """Over 4,096 tokens, and over those from 1,024 on."""
    return {(0, 4096): whole, (1024, 4096): later}


def segments(*figures: float) -> dict[tuple[int, int], float]:
    """Of 1,024 tokens each, the last of them ending at 12,288."""
    begin = 12_288 - 1024 * len(figures)
    return {(begin + 1024 * i, begin + 1024 * (i + 1)): f for i, f in enumerate(figures)}


PERSUASION = (
    dense(
        "persuasion",
        first({512: 33.34, 1024: 35.52, 2048: 40.18, 4096: 37.34, 6144: 35.73, 8192: 34.44})
        | segments(31.40, 28.47, 41.27, 50.67, 67.03),
    ),
    case(
        "persuasion",
        4,
        2044,
        first({2048: 40.18, 4096: 37.61, 6144: 36.05, 8192: 34.80})
        | segments(31.91, 29.03, 41.66, 43.61, 43.70),
    ),
    case(
        "persuasion",
        0,
        2048,
        first({2048: 40.18, 4096: 48.78, 6144: 48.68, 8192: 49.58})
        | segments(54.95, 47.08, 63.56, 65.55, 66.87),
    ),
    case(
        "persuasion",
        4,
        508,
        first({512: 33.34, 1024: 36.03, 2048: 42.10, 4096: 40.05, 6144: 38.31}),
    ),
    case(
        "persuasion",
        0,
        512,
        first({512: 33.34, 1024: 54.28, 2048: 65.89, 4096: 63.67, 6144: 60.84}),
    ),
    # Growing distances are harmless while they stay within what the model was trained on.
    case(
        "persuasion",
        4,
        508,
        first({512: 33.34, 1024: 36.03, 2048: 42.26, 4096: 40.25, 6144: 38.58}),
        clamped=False,
    ),
    case(
        "persuasion",
        1,
        511,
        first({512: 33.34, 1024: 36.07, 2048: 42.25, 4096: 40.25, 6144: 38.56}),
        clamped=False,
    ),
    case(
        "persuasion",
        4,
        2044,
        first({2048: 40.18, 4096: 37.62, 6144: 36.07, 8192: 34.84})
        | segments(32.05, 28.96, 41.64, 44.08, 44.09),
        clamped=False,
    ),
)
EMMA_LAST = (32768 - 4096, 32768)
EMMA = (
    case("emma", 4, 508, {(0, 32768): 32.27, EMMA_LAST: 36.21}),
    case("emma", 0, 512, {(0, 32768): 52.86, EMMA_LAST: 57.95}),
    case("emma", 4, 508, {(0, 32768): 154.07, EMMA_LAST: 346.95}, clamped=False),
)
ABLATION = (
    dense("emma, middle", middle(33.84, 30.92)),
    case("emma, middle", 0, 512, middle(60.67, 60.09)),
    case("emma, middle", 1, 511, middle(38.99, 37.30)),
    case("emma, middle", 2, 510, middle(39.02, 37.33)),
    case("emma, middle", 4, 508, middle(39.02, 37.33)),
    case("emma, middle", 8, 504, middle(38.98, 37.30)),
    case("emma, middle", 0, 128, middle(88.86, 89.55)),
    case("emma, middle", 4, 124, middle(46.03, 45.22)),
    dense(f"{BOS} emma, middle", middle(33.81, 30.86)),
    case(f"{BOS} emma, middle", 0, 512, middle(60.62, 60.09)),
    case(f"{BOS} emma, middle", 4, 508, middle(38.99, 37.30)),
)
QWEN = (
    dense("persuasion", first({4096: 58.72})),
    case(
        "persuasion",
        4,
        508,
        first({4096: 65.49})
        | {(0, 1024): 58.7, (1024, 2048): 76.3, (2048, 3072): 71.0, (3072, 4096): 57.8},
    ),
    case(
        "persuasion",
        0,
        512,
        first({4096: 97.00})
        | {(0, 1024): 89.4, (1024, 2048): 111.3, (2048, 3072): 99.8, (3072, 4096): 89.2},
    ),
)
GEMMA = (dense("persuasion", first({1024: 33.76, 2048: 36.18, 8192: 32.02})),)
CASES = {
    "smollm2-135m-instruct": PERSUASION + EMMA + ABLATION,
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

    def without_gap(*args, **kwargs):
        return replace(build(*args, **kwargs), has_gap=False)

    with mock.patch.object(model_runner, "build_forward_batch", without_gap):
        yield


def measure_case(model: str, case: Case) -> list[Measurement]:
    settings = {"model": model_path(model), "dtype": "float32"}
    text = text_of(case.text)
    unscored = 1 + text.startswith(BOS)
    with nullcontext() if case.clamped else unclamped_sinks():
        engine = make_engine(case.variant, case.num_tokens, settings)
        started = time.perf_counter()
        with engine.open_stream() as stream:
            ids = ids_of_figures(engine, model, text)[: case.num_tokens]
            scores = stream.score(ids)[unscored:]
        seconds = time.perf_counter() - started
    measurements = []
    for (start, stop), figure in case.figures.items():
        predictions = [score for score in scores[start:stop] if score is not None]
        perplexity = perplexity_of(-math.fsum(predictions), len(predictions))
        assert perplexity is not None, "every figure has predictions"
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


def ids_of_figures(engine: LLMEngine, model: str, text: str) -> list[int]:
    """The text's ids, which must be those that the figures are of.

    SmolLM2's figures were made with the tokenizer that transformers builds from the GGUF file. It
    splits digits and line breaks otherwise than the file asks; no id of these texts differs.
    """
    ids = engine.encode(text)
    if model == "smollm2-135m-instruct":
        plain = engine.get_tokenizer().backend_tokenizer
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        assert ids == plain.encode(text, add_special_tokens=False).ids, "the figures have other ids"
    return ids


def report(measurements: list[Measurement]) -> None:
    print(f"{'text':<28}{'sinks+window':<20}{'tokens':<14}", end="")
    print(f"{'ppl':>9}{'figure':>9}{'diff %':>9}{'s':>8}")
    for m in measurements:
        mark = "" if abs(m.difference_percent) <= LIMIT_PERCENT else "  <-- differs"
        print(f"{m.text:<28}{m.case:<20}{m.tokens:<14}{m.perplexity:>9.3f}{m.figure:>9.2f}", end="")
        print(f"{m.difference_percent:>+9.3f}{m.seconds:>8.1f}{mark}")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--model", choices=CASES, default=next(iter(CASES)))
    options.add_argument("--quick", action="store_true", help="2,048 tokens at most")
    add_results_option(options)
    arguments = options.parse_args()
    if arguments.quick and arguments.results == RESULTS:
        arguments.results = QUICK_RESULTS

    cases = CASES[arguments.model]
    if arguments.quick:
        cases = tuple(short for case in cases if (short := case.first(2048)))
    measurements = []
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.text} {case.name}", file=sys.stderr)
        measurements += measure_case(arguments.model, case)
    report(measurements)
    shared = {"model": arguments.model, "dtype": "float32"}
    rows = [shared | asdict(measurement) for measurement in measurements]
    write_results(f"sink_effect_{arguments.model}", rows, arguments.results)
    differs = any(abs(m.difference_percent) > LIMIT_PERCENT for m in measurements)
    return DIFFERS if differs else 0


if __name__ == "__main__":
    raise SystemExit(main())
