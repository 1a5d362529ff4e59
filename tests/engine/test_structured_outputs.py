"""Answers that end by themselves are what they have to be, however they are asked for."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from benchmarks.schemas import all_schemas
from paged_stream import LLM, SamplingParams, StructuredOutputsParams

END = 0
PROMPT = [i % 90 + 2 for i in range(50)]
# Some of those that printable ASCII can write.
SCHEMAS = [schema for schema in all_schemas().values() if str(schema).isascii()][::9]


def of_regex(regex: str, **others: Any) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(regex=regex), **others)


def likely(token_id: int) -> dict[str, Any]:
    return {"temperature": 0, "logit_bias": {token_id: 100.0}}


def letter(text: str) -> int:
    return ord(text) - 30


@pytest.fixture(scope="module")
def llm(folder):
    settings = {"num_sink_tokens": 4, "window_size": 24, "dtype": "float32", "block_size": 8}
    with LLM(str(folder), **settings, kv_cache_memory_bytes=4 << 20) as llm:
        yield llm


def completions(llm, params, prompts=None):
    prompts = prompts or [PROMPT] * len(params)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [each for output in outputs for each in output.outputs]


def test_twenty_schemas(llm):
    """Most answers are longer than the window."""
    assert len(SCHEMAS) >= 20
    params = [
        SamplingParams(
            seed=seed, max_tokens=250, structured_outputs=StructuredOutputsParams(json=schema)
        )
        for schema in SCHEMAS
        for seed in range(2)
    ]
    answers = completions(llm, params)
    ended = [
        (schema, each.text)
        for schema, each in zip([s for s in SCHEMAS for _ in range(2)], answers, strict=True)
        if each.finish_reason == "stop"
    ]
    for schema, text in ended:
        Draft202012Validator(schema).validate(json.loads(text))
    assert len(ended) >= len(SCHEMAS)
    alone = completions(llm, params[5:6])
    assert alone[0].token_ids == answers[5].token_ids


def test_copies_go_their_own_ways(llm):
    answers = completions(llm, [of_regex("[ab]{8}c", n=4, seed=3, max_tokens=20)])
    assert all(re.fullmatch("[ab]{8}c", each.text) for each in answers)
    assert len({each.text for each in answers}) > 1


def test_an_end_is_allowed_where_the_text_may_end(llm):
    ends = likely(END)
    [once, thrice, ignored] = completions(
        llm,
        [
            of_regex("a+", **ends, max_tokens=9),
            of_regex("a{3,}", **ends, max_tokens=9),
            of_regex("a{3,5}", **ends, max_tokens=9, ignore_eos=True),
        ],
    )
    assert (once.text, once.finish_reason, once.token_ids[-1]) == ("a", "stop", END)
    assert (thrice.text, thrice.finish_reason, len(thrice.token_ids)) == ("aaa", "stop", 4)
    assert (ignored.text, ignored.finish_reason) == ("aaaaa", "stop")


def test_min_tokens_counts_while_the_text_can_go_on(llm):
    ends = likely(END)
    [more, over] = completions(
        llm,
        [
            of_regex("a+", **ends, min_tokens=5, max_tokens=9),
            of_regex("a{2}", **ends, min_tokens=5, max_tokens=9),
        ],
    )
    assert (more.text, more.finish_reason) == ("aaaaa", "stop")
    assert (over.text, over.finish_reason, over.stop_reason) == ("aa", "stop", None)


def test_what_bars_every_token_bars_none(llm):
    """Neither "a" nor an end is left; the structure says which of them may be."""
    params = of_regex("a{2,4}", temperature=0, allowed_token_ids=[letter("b")], max_tokens=9)
    [each] = completions(llm, [params])
    assert re.fullmatch("a{2,4}", each.text) and each.finish_reason == "stop"
    barred = of_regex("a{2,}", bad_words=["a"], min_tokens=8, max_tokens=9, **likely(END))
    [each] = completions(llm, [barred])
    assert each.finish_reason in ("stop", "length") and set(each.text) == {"a"}


def test_stop_strings_and_tokens(llm):
    [text, token] = completions(
        llm,
        [
            of_regex("(ab)+", temperature=0, stop="bab", max_tokens=20),
            of_regex("a[bc]+", **likely(letter("c")), stop_token_ids=[letter("c")], max_tokens=20),
        ],
    )
    assert (text.text, text.stop_reason) == ("a", "bab")
    # An end of the user's is allowed as any other end is: not before the text may end.
    assert (token.text, token.stop_reason) == ("ab", letter("c"))


def test_a_text_that_no_token_continues_is_an_error(llm):
    [bad, good] = completions(llm, [of_regex("aé"), of_regex("ab")])
    assert (bad.text, bad.finish_reason) == ("a", "error")
    assert "structured_outputs" in bad.error
    assert (good.text, good.finish_reason) == ("ab", "stop")


def test_masks_are_worked_out_beside_the_model(make_engine):
    """The model computes while somebody else works out the mask."""
    engine = make_engine()
    core, has_computed = engine.core, threading.Event()
    forward = core.executor._worker._model.compute_logits

    def computing(hidden):
        has_computed.set()
        return forward(hidden)

    core.executor._worker._model.compute_logits = computing
    core.turns._masks._threads.submit(has_computed.wait)
    core.turns._masks._threads.submit(has_computed.wait)
    [each] = completions(engine, [of_regex("ab", max_tokens=5)])
    assert each.text == "ab"
    engine.close()


def test_requests_without_a_structure_have_no_masks(make_engine):
    engine = make_engine(num_decode_steps=4)
    completions(engine, [SamplingParams(max_tokens=5)])
    assert "_threads" not in vars(engine.core.turns._masks)
    engine.close()


def test_structures_need_a_tokenizer(make_engine, bare_folder):
    engine = make_engine(bare_folder)
    with pytest.raises(ValueError, match="structured_outputs needs a tokenizer"):
        engine.generate([PROMPT], of_regex("a"), use_tqdm=False)
    engine.close()
