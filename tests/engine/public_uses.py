"""Every public method and property of engines and streams, with a use of it."""

from __future__ import annotations

import inspect

from paged_stream import (
    LLM,
    AsyncLLMEngine,
    AsyncStream,
    LLMEngine,
    LoRARequest,
    SamplingParams,
    Stream,
)
from paged_stream.text.chat_options import StreamChatOptions

PARAMS = SamplingParams(max_tokens=2)
MESSAGES = [{"role": "user", "content": "hi"}]
NOWHERE = "/nowhere/at/all"
LORA = LoRARequest("a", 1, NOWHERE)

ENGINE = {
    "generate": lambda engine: engine.generate([], PARAMS, use_tqdm=False),
    "chat": lambda engine: engine.chat(MESSAGES, PARAMS, use_tqdm=False),
    "score": lambda engine: engine.score([5, 6], use_tqdm=False),
    "embed": lambda engine: engine.embed([5, 6], use_tqdm=False),
    "get_tokenizer": lambda engine: engine.get_tokenizer(),
    "open_stream": lambda engine: engine.open_stream(),
    "load_stream": lambda engine: engine.load_stream(NOWHERE),
    "add_lora": lambda engine: engine.add_lora(LORA),
    "remove_lora": lambda engine: engine.remove_lora(1),
    "list_loras": lambda engine: engine.list_loras(),
    "abort": lambda engine: engine.abort("a"),
    "stats": lambda engine: engine.stats(),
    "close": None,
    "__enter__": lambda engine: engine.__enter__(),
    "add_request": lambda engine: engine.add_request("a", [5, 6]),
    "abort_request": lambda engine: engine.abort_request("a"),
    "has_unfinished_requests": lambda engine: engine.has_unfinished_requests(),
    "step": lambda engine: engine.step(),
    "park_idle_streams": lambda engine: engine.park_idle_streams(),
    "encode": lambda engine: engine.encode("hi"),
    "core": lambda engine: engine.core,
    "intake": lambda engine: engine.intake,
}
STREAM = {
    "position": lambda stream: stream.position,
    "is_generating": lambda stream: stream.is_generating,
    "append": lambda stream: stream.append("hi"),
    "end_turn": lambda stream: stream.end_turn(),
    "fork": lambda stream: stream.fork(),
    "score": lambda stream: stream.score("hi"),
    "cut": lambda stream: stream.cut(1, 2),
    "rewind": lambda stream: stream.rewind(1),
    "park": lambda stream: stream.park(),
    "save": lambda stream: stream.save(NOWHERE),
    "save_bytes": lambda stream: stream.save_bytes(),
    "stats": lambda stream: stream.stats(),
    "visible": lambda stream: stream.visible(),
    "close": None,
}

# By class; `None`: what may be used at any time.
USES: dict[type, dict] = {
    LLM: ENGINE,
    LLMEngine: ENGINE,
    Stream: STREAM
    | {
        "generate": lambda stream: next(stream.generate(PARAMS)),
        "complete": lambda stream: next(stream.complete("hi", PARAMS)),
        "chat": lambda stream: next(stream.chat("hi", PARAMS)),
        "__enter__": lambda stream: stream.__enter__(),
    },
    AsyncLLMEngine: {
        "generate": lambda engine: anext(engine.generate("hi", PARAMS)),
        "chat": lambda engine: anext(engine.chat(MESSAGES, PARAMS)),
        "score": lambda engine: engine.score("hi"),
        "embed": lambda engine: engine.embed("hi"),
        "get_tokenizer": lambda engine: engine.get_tokenizer(),
        "open_stream": lambda engine: engine.open_stream(pin="hi"),
        "load_stream": lambda engine: engine.load_stream(NOWHERE),
        "add_lora": lambda engine: engine.add_lora(LORA),
        "remove_lora": lambda engine: engine.remove_lora(1),
        "list_loras": lambda engine: engine.list_loras(),
        "abort": lambda engine: engine.abort("a"),
        "stats": lambda engine: engine.stats(),
        "shutdown": lambda engine: engine.shutdown(NOWHERE),
        "encode": lambda engine: engine.encode("hi"),
        "core": lambda engine: engine.core,
        "intake": lambda engine: engine.intake,
        "__aenter__": lambda engine: engine.__aenter__(),
        "close": None,
    },
    AsyncStream: STREAM
    | {
        "generate": lambda stream: anext(stream.generate(PARAMS)),
        "complete": lambda stream: anext(stream.complete("hi", PARAMS)),
        "chat": lambda stream: anext(stream.chat("hi", PARAMS)),
        "encode_chat": lambda stream: stream.encode_chat("a", PARAMS, StreamChatOptions()),
        "snapshot": lambda stream: stream.snapshot(),
        "resume": lambda stream: anext(stream.resume(PARAMS, 0)),
        "__aenter__": lambda stream: stream.__aenter__(),
        "close_now": None,
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
