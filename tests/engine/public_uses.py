"""Every public method and property of engines and streams, with a use of it."""

from __future__ import annotations

import inspect

from paged_stream import LLM, AsyncLLMEngine, AsyncStream, LLMEngine, SamplingParams, Stream
from paged_stream.engine.outputs import DeltaQueue
from paged_stream.engine.stream import Addition

PARAMS = SamplingParams(max_tokens=2)
MESSAGES = [{"role": "user", "content": "hi"}]
NOWHERE = "/nowhere/at/all"

# By class; `None`: what may be used at any time.
USES: dict[type, dict] = {
    LLM: {
        "__enter__": lambda llm: llm.__enter__(),
        "generate": lambda llm: llm.generate([], PARAMS, use_tqdm=False),
        "chat": lambda llm: llm.chat(MESSAGES, PARAMS, use_tqdm=False),
        "score": lambda llm: llm.score([5, 6], use_tqdm=False),
        "close": None,
    },
    LLMEngine: {
        "add_request": lambda engine: engine.add_request("a", [5, 6]),
        "add_encoded_request": lambda engine: engine.add_encoded_request("b", [5, 6]),
        "add_score_request": lambda engine: engine.add_score_request("c", [5, 6]),
        "abort_request": lambda engine: engine.abort_request("a"),
        "has_unfinished_requests": lambda engine: engine.has_unfinished_requests(),
        "step": lambda engine: engine.step(),
        "advance": lambda engine: engine.advance(),
        "open_stream": lambda engine: engine.open_stream(),
        "load_stream": lambda engine: engine.load_stream(NOWHERE),
        "read_stream": lambda engine: engine.read_stream(NOWHERE),
        "restore_stream": lambda engine: engine.restore_stream(None),
        "park_idle_streams": lambda engine: engine.park_idle_streams(),
        "fork_stream": lambda engine: engine.fork_stream(0),
        "cut_stream": lambda engine: engine.cut_stream(0, 1, 2),
        "rewind_stream": lambda engine: engine.rewind_stream(0, 1),
        "start_stream_turn": lambda engine: engine.start_stream_turn(0, PARAMS, 0, DeltaQueue()),
        "start_stream_scoring": lambda engine: engine.start_stream_scoring(0, DeltaQueue()),
        "has_turn": lambda engine: engine.has_turn(0, DeltaQueue()),
        "end_stream_turn": lambda engine: engine.end_stream_turn(0, None),
        "close_stream": lambda engine: engine.close_stream(0),
        "stream_stats": lambda engine: engine.stream_stats(0),
        "stats": lambda engine: engine.stats(),
        "encode": lambda engine: engine.encode("hi"),
        "check_params": lambda engine: engine.check_params(PARAMS),
        "chat_tokenizer": lambda engine: engine.chat_tokenizer(),
        "core": lambda engine: engine.core,
        "scheduler": lambda engine: engine.scheduler,
        "executor": lambda engine: engine.executor,
        "prompts": lambda engine: engine.prompts,
        "__enter__": lambda engine: engine.__enter__(),
        "peek": None,
        "summary": None,
        "close": None,
    },
    Stream: {
        "position": lambda stream: stream.position,
        "is_generating": lambda stream: stream.is_generating,
        "is_behind": lambda stream: stream.is_behind,
        "is_settled": lambda stream: stream.is_settled,
        "has_room_for": lambda stream: stream.has_room_for(1),
        "append": lambda stream: stream.append("hi"),
        "encode": lambda stream: stream.encode("hi"),
        "queue": lambda stream: stream.queue("hi", Addition([5], True)),
        "generate": lambda stream: list(stream.generate(PARAMS)),
        "score": lambda stream: stream.score("hi"),
        "start_turn": lambda stream: stream.start_turn(PARAMS, DeltaQueue()),
        "end_turn": lambda stream: stream.end_turn(),
        "chat": lambda stream: list(stream.chat("hi", PARAMS)),
        "encode_chat": lambda stream: stream.encode_chat("hi"),
        "queue_chat": lambda stream: stream.queue_chat("hi", PARAMS, Addition([5], True)),
        "check_can_generate": lambda stream: stream.check_can_generate(PARAMS),
        "fork": lambda stream: stream.fork(),
        "cut": lambda stream: stream.cut(1, 2),
        "rewind": lambda stream: stream.rewind(1),
        "park": lambda stream: stream.park(),
        "save": lambda stream: stream.save(NOWHERE),
        "snapshot": lambda stream: stream.snapshot(),
        "stats": lambda stream: stream.stats(),
        "__enter__": lambda stream: stream.__enter__(),
        "turn_ender": None,
        "summary": None,
        "close": None,
    },
    AsyncLLMEngine: {
        "generate": lambda engine: anext(engine.generate("hi", PARAMS)),
        "score": lambda engine: engine.score("hi"),
        "open_stream": lambda engine: engine.open_stream(pin="hi"),
        "load_stream": lambda engine: engine.load_stream(NOWHERE),
        "stats": lambda engine: engine.stats(),
        "call": lambda engine: engine.call(lambda: None),
        "open_with": lambda engine: engine.open_with(lambda: None),
        "__aenter__": lambda engine: engine.__aenter__(),
        "shutdown": lambda engine: engine.shutdown(NOWHERE),
        "close": None,
    },
    AsyncStream: {
        "append": lambda stream: stream.append("hi"),
        "generate": lambda stream: anext(stream.generate(PARAMS)),
        "chat": lambda stream: anext(stream.chat("hi", PARAMS)),
        "end_turn": lambda stream: stream.end_turn(),
        "fork": lambda stream: stream.fork(),
        "cut": lambda stream: stream.cut(1, 2),
        "rewind": lambda stream: stream.rewind(1),
        "park": lambda stream: stream.park(),
        "save": lambda stream: stream.save(NOWHERE),
        "stats": lambda stream: stream.stats(),
        "__aenter__": lambda stream: stream.__aenter__(),
        "close_now": None,
        "close": None,
    },
}


def uses_of(cls) -> dict:
    """What fails once it is over, by name; asserts that no public name is missing."""
    public = {name for name in dir(cls) if not name.startswith("_")}
    listed = {name for name in USES[cls] if not name.startswith("_")}
    assert public == listed, f"{cls.__name__}: {sorted(public ^ listed)} are not in the table"
    return {name: use for name, use in USES[cls].items() if use is not None}


async def failure(use, thing) -> BaseException | None:
    """What a use raises, awaited if need be."""
    try:
        result = use(thing)
        if inspect.isawaitable(result):
            await result
    except Exception as error:
        return error
    return None
