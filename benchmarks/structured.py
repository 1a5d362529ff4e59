"""Is every answer what it has to be, and what does that cost per token?

    python -m benchmarks.structured

A chat model answers over 200 schemas at temperature 1.0: in one batch through `LLM.chat`, in
streams of several turns, and through `AsyncLLMEngine`, all at once. Every answer that ends by
itself is validated by jsonschema. Then the same requests run with a structure and without, in turn,
and the seconds per generated token are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Iterable
from functools import partial
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks.harness import alternate, parser, spread, write_results
from benchmarks.schemas import Schema, all_schemas, question
from paged_stream import (
    LLM,
    AsyncLLMEngine,
    EngineConfig,
    RequestDelta,
    SamplingParams,
    StructuredOutputsParams,
)

_TURNS = 4  # of each stream
Answer = tuple[Schema, str, str | None]  # the schema, the text, why it ended


def params_of(schema: Schema, seed: int, max_tokens: int) -> SamplingParams:
    structure = StructuredOutputsParams(json=schema)
    return SamplingParams(seed=seed, max_tokens=max_tokens, structured_outputs=structure)


def in_one_batch(llm: LLM, schemas: dict[str, Schema], max_tokens: int) -> list[Answer]:
    messages = [[{"role": "user", "content": question(name)}] for name in schemas]
    params = [params_of(schema, seed, max_tokens) for seed, schema in enumerate(schemas.values())]
    outputs = llm.chat(messages, params)
    return [
        (schema, output.outputs[0].text, output.outputs[0].finish_reason)
        for schema, output in zip(schemas.values(), outputs, strict=True)
    ]


def in_streams(llm: LLM, schemas: dict[str, Schema], max_tokens: int) -> list[Answer]:
    answers = []
    for index, (name, schema) in enumerate(schemas.items()):
        if index % _TURNS == 0:
            stream = llm.open_stream()
        deltas = list(stream.chat(question(name), params_of(schema, index, max_tokens)))
        answers.append((schema, *_joined(deltas)))
        if index % _TURNS == _TURNS - 1:
            stream.close()
    return answers


def at_once(model: str, schemas: dict[str, Schema], max_tokens: int) -> list[Answer]:
    async def answer(engine: AsyncLLMEngine, index: int, name: str, schema: Schema) -> Answer:
        messages = [{"role": "user", "content": question(name)}]
        params = params_of(schema, index, max_tokens)
        return schema, *_joined([delta async for delta in engine.chat(messages, params)])

    async def answers() -> list[Answer]:
        async with AsyncLLMEngine(EngineConfig(model=model, window_size=1024)) as engine:
            each = (answer(engine, i, *item) for i, item in enumerate(schemas.items()))
            return await asyncio.gather(*each)

    return asyncio.run(answers())


def _joined(deltas: list[RequestDelta]) -> tuple[str, str | None]:
    return "".join(delta.delta_text for delta in deltas), deltas[-1].finish_reason


def check(way: str, answers: Iterable[Answer]) -> dict[str, Any]:
    """Count the answers that ended by themselves, and those of them that are valid."""
    ended = [(schema, text) for schema, text, reason in answers if reason == "stop"]
    valid = sum(_is_valid(schema, text) for schema, text in ended)
    print(
        f"{way:<10} {valid} of {len(ended)} answers that ended by themselves are valid", flush=True
    )
    return {"way": way, "ended": len(ended), "valid": valid}


def _is_valid(schema: Schema, text: str) -> bool:
    try:
        return Draft202012Validator(schema).is_valid(json.loads(text))
    except ValueError:
        return False


def slowdown(llm: LLM, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per token of the same prompts, with a schema and without."""
    prompts = [f"Measurement {index}, as JSON:" for index in range(batch)]
    items = {"type": "array", "minItems": 64, "items": all_schemas()["measurement: flat"]}
    structures = {"without": None, "with": StructuredOutputsParams(json=items)}
    seconds = alternate(
        {
            name: partial(
                llm.generate,
                prompts,
                SamplingParams(
                    seed=0, max_tokens=args.tokens, ignore_eos=True, structured_outputs=structure
                ),
                use_tqdm=False,
            )
            for name, structure in structures.items()
        },
        repeats=args.repeats,
    )
    each = {name: [run / args.tokens for run in runs] for name, runs in seconds.items()}
    plain, masked = (statistics.median(each[name]) for name in ("without", "with"))
    print(
        f"batch {batch:>3}  {1e3 * plain:.2f} ms per step without, {1e3 * masked:.2f} with: "
        f"{100 * (masked / plain - 1):.1f} % more",
        flush=True,
    )
    return {
        "batch": batch,
        "seconds_without": plain,
        "seconds_with": masked,
        "spread": max(map(spread, each.values())),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--schemas", type=int, help="default: all")
    arguments.add_argument("--max-tokens", type=int, default=256, help="of an answer")
    arguments.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="to time")
    arguments.add_argument("--tokens", type=int, default=128, help="of each timed answer")
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()
    schemas = dict(list(all_schemas().items())[: args.schemas])
    with LLM(args.model, window_size=1024) as llm:
        rows = [
            check("batch", in_one_batch(llm, schemas, args.max_tokens)),
            check("streams", in_streams(llm, schemas, args.max_tokens)),
        ]
        times = [slowdown(llm, batch, args) for batch in args.batch]
    rows.append(check("at once", at_once(args.model, schemas, args.max_tokens)))
    write_results("structured", [*rows, *times])


if __name__ == "__main__":
    main()
