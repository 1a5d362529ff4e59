"""A dialogue of many rounds in one stream, with answers that can be checked.

The paper runs questions with known answers one after the other in one stream, and counts exact
matches. Here every round is a question of the user's file (say MT-Bench's), which the model answers
as it likes, and then a request with one right answer: to repeat a code word that it names, whole
and exactly. Nothing older than the request is needed for it, so a pattern of attention that keeps a
model working gets as many right as the model does when it is asked alone (one-shot); one that
breaks it gets none.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from paged_stream.engine import LLMEngine
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.stream import Stream

_WORDS = (
    "anchor apple arrow basket beach bell bird bridge candle castle cloud coffee corner desert "
    "dragon eagle engine feather field flame forest garden hammer harbor horse island jacket "
    "kettle ladder lemon mirror mountain orange pencil piano pocket rabbit river rocket saddle "
    "shadow silver spider summer table tiger tunnel valley velvet violin window winter"
).split()
_CHECK_TOKENS = 16  # for the answer to a request


def read_questions(path: Path) -> list[str]:
    """All turns of a file of JSON lines with ``turns``, as MT-Bench's questions come.

    Raises:
        ValueError: names the line that has none.
        OSError: the file cannot be read.
    """
    questions: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            turns = json.loads(line)["turns"]
        except (ValueError, KeyError, TypeError):
            turns = None
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise ValueError(f'{path}, line {number}: expected {{"turns": ["...", ...]}}')
        questions += turns
    if not questions:
        raise ValueError(f"{path} has no questions")
    return questions


def request(word: str) -> str:
    return f'The code word is "{word}". Repeat the code word.'


def is_answer(text: str, word: str) -> bool:
    """Whether an answer has the word, exactly and whole; small models wrap it in a sentence."""
    return word in re.findall(r"[a-z]+", text.lower())


def say(stream: Stream, content: str, max_tokens: int) -> str:
    """The answer to a message of the user."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return "".join(delta.delta_text for delta in stream.chat(content, params))


def longest(engine_encode: Any, questions: Sequence[str], answer_tokens: int) -> int:
    """Tokens that the whole dialogue can have at most."""
    template = 64  # around the two messages and answers of a round
    request_tokens = max(len(engine_encode(request(word))) for word in _WORDS)
    per_round = answer_tokens + _CHECK_TOKENS + request_tokens + template
    return sum(len(engine_encode(question)) + per_round for question in questions)


def measure_dialogue(
    engine: LLMEngine,
    name: str,
    questions: Sequence[str],
    *,
    answer_tokens: int,
    one_shot: bool = False,
    seed: int = 0,
    use_tqdm: bool = False,
) -> dict[str, Any]:
    """Exact matches of a dialogue, round by round, as a row of a table.

    Args:
        answer_tokens: at most, of an answer to a question.
        one_shot: every request in a stream of its own, without questions before it.
    """
    rng = random.Random(seed)
    hits = []
    num_tokens = 0
    stream = engine.open_stream()
    for question in tqdm(questions, unit="round", desc=name, disable=not use_tqdm):
        word = rng.choice(_WORDS)
        if one_shot:
            stream.close()
            stream = engine.open_stream()
        else:
            say(stream, question, answer_tokens)
        hits.append(int(is_answer(say(stream, request(word), _CHECK_TOKENS), word)))
        num_tokens = stream.position
    stream.close()
    return {
        "variant": name,
        "rounds": len(hits),
        "exact_match": sum(hits) / len(hits),
        "late_match": sum(hits[len(hits) // 2 :]) / (len(hits) - len(hits) // 2),
        "tokens": num_tokens,
        "hits": hits,
    }
