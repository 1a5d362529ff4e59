"""Questions with known answers one after the other in one stream, scored by exact match.

The paper concatenates the question-answer pairs of ARC into one stream and looks at what the model
says where each answer should come (section 4.3, table 5). Here the pairs are the user's. What the
model says is scored and forgotten; the right answer is what goes on in the stream, so that the
stream is the same whatever attends to what. No question needs what was said before it, though
right answers that are still visible may help as examples: where attention keeps the model working,
it gets about as many right as when it is asked each question alone (one-shot), or more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.stream import Stream
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.progress_bar import progress_bar
from paged_stream.text.chat_options import StreamChatOptions
from paged_stream.text.text_file import read_text


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and what is right.

    Args:
        answer: what must stand in what the model says.
        reply: the whole sentence that goes into the stream.
    """

    question: str
    answer: str
    reply: str

    def __post_init__(self) -> None:
        if not self.is_right(self.reply):
            raise ValueError(f"reply must have the answer in it, got {self.reply!r}")

    def is_right(self, text: str) -> bool:
        """Whether the answer stands in ``text``, whole; upper and lower case are the same."""
        return re.search(rf"(?<!\w){re.escape(self.answer)}(?!\w)", text, re.I) is not None


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of JSON lines: ``question``, ``answer``, and, if the answer is to be in
    a sentence, ``reply``. Empty lines are skipped.

    Raises:
        ValueError: names the file, and the line that is wrong.
        OSError: the file cannot be read.
    """
    lines = read_text(path).split("\n")
    pairs: list[Pair] = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                pairs.append(_read_pair(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not pairs:
        raise ValueError(f"{path} has no questions")
    return pairs


def _read_pair(line: str) -> Pair:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        entry = None
    if not isinstance(entry, dict):
        raise ValueError('expected {"question": "...", "answer": "..."}')
    words: list[Any] = [entry.get(name) for name in ("question", "answer")]
    words.append(entry.get("reply", words[1]))
    for name, word in zip(("question", "answer", "reply"), words, strict=True):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"{name} must be a string that is not empty, got {word!r}")
    return Pair(*(word.strip() for word in words))


def longest(encode: Callable[[str], Sequence[int]], pair: Pair, answer_tokens: int) -> int:
    """Tokens that a round can have at most."""
    template = 64  # around a question and its answer
    return len(encode(pair.question)) + len(encode(pair.reply)) + answer_tokens + template


def answer(stream: Stream, pair: Pair, params: SamplingParams) -> str:
    """What the model says to a question; the stream goes on with the right reply instead."""
    inner, options = stream.inner, StreamChatOptions()
    addition = inner.encode_chat(pair.question, stream.caller.call(inner.hear), options)
    stream.caller.call(partial(inner.queue_chat, pair.question, params, addition, options))
    with stream.fork() as asked:
        text = "".join(delta.delta_text for delta in asked.generate(params))
    stream.append(pair.reply)
    return text


def measure_dialogue(
    engine: LLMEngine,
    name: str,
    pairs: Sequence[Pair],
    *,
    answer_tokens: int,
    one_shot: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Exact matches round by round, as a row of a table.

    Args:
        answer_tokens: of what the model says to a question, at most.
        one_shot: every question in a stream of its own.

    Raises:
        ValueError: the model has no chat template that can go on.
    """
    params = SamplingParams(temperature=0.0, max_tokens=answer_tokens)
    hits: list[int] = []
    longest_stream = 0
    stream = engine.open_stream()
    for pair in progress_bar(pairs, unit=" rounds", desc=name, disable=not show_progress):
        if one_shot:
            stream.close()
            stream = engine.open_stream()
        hits.append(int(pair.is_right(answer(stream, pair, params))))
        longest_stream = max(longest_stream, stream.position)
    stream.close()
    return {
        "variant": name,
        "rounds": len(hits),
        "exact_match": sum(hits) / len(hits),
        "late_match": sum(hits[len(hits) // 2 :]) / (len(hits) - len(hits) // 2),
        "tokens": longest_stream,
        "hits": hits,
    }
