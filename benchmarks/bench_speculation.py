"""How much faster does a text go on whose tokens are guessed and computed several at a time?

    python -m benchmarks.bench_speculation
    python -m benchmarks.bench_speculation --model qwen2.5-coder-0.5b

Prompts of three kinds are gone on with greedily, one at a time, by an engine without guesses and by
others with prompt lookup and with a draft model, in turn: logs of a server, functions of Python's
own library that are to be repeated with a change, and questions, of which some are about a page of
a novel. Every token must be the same. What is timed begins with the first token.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import random
import statistics
import string
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.harness import add_results_option, parser, write_results
from benchmarks.texts import austen
from benchmarks.weights import model_path
from paged_stream import EngineConfig, LLMEngine, SamplingParams
from paged_stream.setting_kinds import SpeculativeConfig

_PLAIN = "without"
FUNCTIONS: tuple[Callable[..., Any], ...] = (
    textwrap.wrap,
    textwrap.dedent,
    string.capwords,
    contextlib.closing,
)
CHANGES = (
    "Add a docstring to this function and return it in full:",
    "Rename the argument `text` to `source` and return the whole function:",
    "Add type hints to this code and return all of it:",
    "Repeat this class with one more comment:",
)
QUESTIONS = (
    "Explain what a hash table is and when to use one.",
    "Write a short story about a lighthouse keeper and a storm.",
    "Give me ten tips for a healthy breakfast.",
    "Summarise this page:\n\n{page}",
    "Who is named in this page, and what is said of each? Quote the sentences.\n\n{page}",
    "Correct any spelling mistakes in this page and write it out again:\n\n{page}",
)


def log(seed: int, num_lines: int = 40) -> str:
    """What a server writes: few kinds of lines, with changing numbers."""
    rng = random.Random(seed)
    kinds = (
        "INFO  [worker-{worker}] request {request} GET /api/v1/items/{item} 200 in {ms} ms",
        "INFO  [worker-{worker}] request {request} POST /api/v1/orders 201 in {ms} ms",
        "WARN  [pool] connection {item} to db-{worker}.internal idle for {ms} s, closing",
        "DEBUG [cache] miss for key user:{item}:profile, loaded in {ms} ms",
    )
    lines = []
    for number in range(num_lines):
        fields = {
            "worker": rng.randrange(4),
            "request": 48210 + number,
            "item": rng.randrange(1000, 9999),
            "ms": rng.randrange(1, 90),
        }
        when = f"2026-03-14 09:{17 + number // 30:02}:{2 * number % 60:02}.{rng.randrange(1000):03}"
        lines.append(f"{when} {rng.choice(kinds).format(**fields)}\n")
    return "".join(lines)


def prompts(engine: LLMEngine) -> Iterator[tuple[str, list[int]]]:
    """Kinds, and token ids."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None

    def ask(question: str) -> list[int]:
        return tokenizer.apply_chat_template([{"role": "user", "content": question}])

    for seed in range(4):
        yield "log", engine.encode(log(seed))
    for function, change in zip(FUNCTIONS, CHANGES, strict=True):
        yield "code", ask(f"{change}\n\n```python\n{inspect.getsource(function)}```")
    novel = austen("persuasion")
    for number, question in enumerate(QUESTIONS):
        page = novel[40_000 + 3_000 * number :][:1_500]
        yield "chat", ask(question.format(page=page))


def go_on(engine: LLMEngine, prompt: list[int], num_tokens: int) -> tuple[list[int], float]:
    """Tokens, and the seconds from the first of them on, each."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    engine.add_request("only", prompt, params)
    tokens: list[int] = []
    began: float | None = None
    num_first = 0
    while engine.has_unfinished_requests():
        for delta in engine.step():
            tokens += delta.delta_token_ids
            if began is None and tokens:
                began, num_first = time.perf_counter(), len(tokens)
    assert began is not None
    return tokens, (time.perf_counter() - began) / (len(tokens) - num_first)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind of text and way of guessing."""
    model = model_path(args.model)
    settings: dict[str, Any] = {
        "model": model,
        "dtype": args.dtype,
        "enable_prefix_caching": False,
        "num_decode_steps": 8,  # as LLM has it
        "max_num_seqs": 1,
    }
    ways: dict[str, SpeculativeConfig] = {
        "prompt lookup": {"method": "ngram", "num_speculative_tokens": args.guesses},
        "draft model": {"model": args.draft or model, "num_speculative_tokens": args.draft_guesses},
    }
    engines = {_PLAIN: LLMEngine(EngineConfig(**settings))}
    for way, config in ways.items():
        engines[way] = LLMEngine(EngineConfig(**settings, speculative_config=config))
    texts: dict[str, list[list[int]]] = {}
    for kind, prompt in prompts(engines[_PLAIN]):
        texts.setdefault(kind, []).append(prompt)
    rows = []
    for kind, of_kind in texts.items():
        before = {way: engines[way].stats() for way in ways}
        seconds: dict[str, list[float]] = {name: [] for name in engines}  # of single texts
        for prompt in of_kind:
            for name, median in time_text(engines, prompt, args).items():
                seconds[name].append(median)
        for way in ways:
            after = engines[way].stats()
            guessed = after.num_draft_tokens - before[way].num_draft_tokens
            right = after.num_accepted_tokens - before[way].num_accepted_tokens
            ratios = [a / b for a, b in zip(seconds[_PLAIN], seconds[way], strict=True)]
            row = {
                "model": args.model,
                "dtype": args.dtype,
                "text": kind,
                "way": way,
                "prompts": len(of_kind),
                "tokens": args.tokens,
                "plain_tokens_per_second": len(of_kind) / sum(seconds[_PLAIN]),
                "tokens_per_second": len(of_kind) / sum(seconds[way]),
                "ratio": sum(seconds[_PLAIN]) / sum(seconds[way]),
                "ratios": ratios,
                "right": right / max(1, guessed),
            }
            rows.append(row)
            print(
                f"{kind:<6}{way:<15}{row['plain_tokens_per_second']:>8.1f}"
                f"{row['tokens_per_second']:>11.1f}{row['ratio']:>8.2f}  "
                f"{min(ratios):.2f} to {max(ratios):.2f}{100 * row['right']:>15.0f} %",
                flush=True,
            )
    return rows


def time_text(
    engines: Mapping[str, LLMEngine], prompt: list[int], args: argparse.Namespace
) -> dict[str, float]:
    """Seconds per token of each engine, medians of runs in turn; all must say the same."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    texts = []
    for _ in range(args.repeats):
        for name, engine in engines.items():
            tokens, each = go_on(engine, prompt, args.tokens)
            seconds[name].append(each)
            texts.append(tokens)
    assert all(tokens == texts[0] for tokens in texts), "guesses have changed a token"
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--dtype", default="bfloat16", choices=["auto", "bfloat16", "float32"])
    arguments.add_argument(
        "--draft", help="model that guesses; by default the same, in the bits of its file"
    )
    arguments.add_argument("--guesses", type=int, default=8, help="at most, at once")
    arguments.add_argument("--draft-guesses", type=int, default=4, help="of the draft model")
    arguments.add_argument("--tokens", type=int, default=256, help="of each text")
    arguments.add_argument("--repeats", type=int, default=3)
    add_results_option(arguments)
    args = arguments.parse_args()
    print("text  way              without   guessing   ratio  of single texts   right")
    write_results("speculation", measure(args), args.results)


if __name__ == "__main__":
    main()
