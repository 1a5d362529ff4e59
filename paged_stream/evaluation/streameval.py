"""StreamEval: what a stream can still tell of what it was told.

Rebuilt from the paper's description; its data was never published. The stream is lines that each
put a number into a register. After every ten lines comes a question about the register of a line
some way back, and the answer stays in the stream. Whether that line is still visible decides: sink
tokens keep a stream fluent, they are no memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.stream import Stream
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.progress_bar import progress_bar

_ADJECTIVES = (
    "amber ancient brave bright brisk calm clever cold crisp damp dark deep dry early faint fair "
    "fast firm fresh gentle glad golden grand green happy heavy hidden honest humble keen kind "
    "late light little lively lonely loud lucky mild neat"
).split()
_NOUNS = (
    "anchor apple arrow autumn badge basket beach bell bird bridge brook cabin candle castle cloud "
    "coast corner cottage desert door eagle engine farm feather field flame forest fountain garden "
    "gate harbor hill island jacket kettle ladder lake lantern meadow mirror"
).split()
NUM_NAMES = len(_ADJECTIVES) * len(_NOUNS)

LINES_PER_QUESTION = 10


@dataclass(frozen=True, slots=True)
class Register:
    """A line's name and the number that it tells."""

    name: str
    content: str

    @property
    def line(self) -> str:
        return f"The REGISTER_CONTENT of line {self.name} is <{self.content}>.\n"

    @property
    def question(self) -> str:
        return (
            f"Question: what is the REGISTER_CONTENT of line {self.name}?\n"
            f"Answer: The REGISTER_CONTENT of line {self.name} is <"
        )

    def is_answer(self, text: str) -> bool:
        """Whether a text is the number, whole and alone."""
        return text.strip() == self.content


def registers(seed: int) -> Iterator[Register]:
    """Lines without end; a name comes back after `NUM_NAMES` of them, a number at random."""
    rng = random.Random(seed)
    names = [f"{adjective}-{noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
    rng.shuffle(names)
    while True:
        for name in names:
            yield Register(name, f"{rng.randrange(10_000, 100_000)}")


@dataclass(slots=True, kw_only=True)
class Recall:
    """Right answers among the questions at one distance.

    A line is visible if all of it was when the answer began, gone if nothing of it was; one that
    was cut by the edge of the window is neither.
    """

    distance: int
    questions: int = 0
    hits: int = 0
    visible: int = 0
    visible_hits: int = 0
    gone: int = 0
    gone_hits: int = 0

    def count(self, hit: bool, *, visible: bool, gone: bool) -> None:
        self.questions += 1
        self.hits += hit
        self.visible += visible
        self.visible_hits += hit and visible
        self.gone += gone
        self.gone_hits += hit and gone

    @property
    def recall(self) -> float:
        return self.hits / self.questions


def check_distances(distances: list[int]) -> None:
    """Refuse distances at which nothing could be asked.

    Raises:
        ValueError: names the distance.
    """
    for distance in distances:
        if not 0 <= distance < NUM_NAMES:
            raise ValueError(
                f"distances must be at least 0 lines and less than {NUM_NAMES}, got {distance}"
            )


def ask(
    engine: LLMEngine, distance: int, *, questions: int, seed: int = 0, progress: Any = None
) -> Recall:
    """Tell one stream lines and ask ``questions`` times, each time about the line that was told
    ``distance`` lines before the last one (0 is the last)."""
    recall = Recall(distance=distance)
    told: list[tuple[Register, int, int]] = []  # with the positions where it begins and ends
    source = registers(seed)
    with engine.open_stream() as stream:
        while recall.questions < questions:
            for _ in range(LINES_PER_QUESTION):
                register = next(source)
                begin = stream.position
                stream.append(register.line)
                told.append((register, begin, stream.position))
            del told[: -distance - 1]
            if len(told) <= distance:
                continue
            register, begin, end = told[-distance - 1]
            stream.append(register.question)
            window = engine.sink_window
            start = window.window_start(stream.position - 1)
            pinned = end <= window.num_sink_tokens
            hit = register.is_answer(answer(stream))
            recall.count(hit, visible=pinned or begin >= start, gone=not pinned and end <= start)
            if progress is not None:
                progress.update()
    return recall


def answer(stream: Stream) -> str:
    """What the stream says up to the closing bracket; then a new line begins."""
    params = SamplingParams(temperature=0.0, max_tokens=8, stop=">", ignore_eos=True)
    text = "".join(delta.delta_text for delta in stream.generate(params))
    stream.append("\n")
    return text


def measure_recall(
    engine: LLMEngine,
    name: str,
    distances: list[int],
    *,
    questions: int,
    seed: int = 0,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """Recall at each distance, each in a stream of its own, as rows of a table."""
    total = len(distances) * questions
    rows = []
    with progress_bar(
        total=total, unit=" questions", desc=name, disable=not show_progress
    ) as progress:
        for distance in distances:
            recall = ask(engine, distance, questions=questions, seed=seed, progress=progress)
            rows.append(
                {
                    "variant": name,
                    "distance": distance,
                    "questions": recall.questions,
                    "hits": recall.hits,
                    "recall": recall.recall,
                    "visible": recall.visible,
                    "visible_hits": recall.visible_hits,
                    "gone": recall.gone,
                    "gone_hits": recall.gone_hits,
                }
            )
    return rows
