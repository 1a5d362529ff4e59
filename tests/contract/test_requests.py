"""What every engine does with requests."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from array import array

import pytest

from paged_stream import SamplingParams
from paged_stream.engine.outputs import EngineStats
from tests.contract.engines import SETTINGS
from tests.contract.shared import (
    ENDLESS,
    GREEDY,
    MESSAGES,
    PROMPT,
    SHORT,
    answers,
    ids,
    letters,
    refuses,
    same_turn,
)


def test_one_prompt_or_a_list(engine, reference):
    [output] = engine.generate("hello", GREEDY, use_tqdm=False)
    assert answers([output]) == answers(reference.generate("hello", GREEDY, use_tqdm=False))
    prompts = ["hello", PROMPT, "a"]
    several = [GREEDY, SHORT, SamplingParams(seed=5, n=2, max_tokens=5, ignore_eos=True)]
    expected = reference.generate(prompts, several, use_tqdm=False)
    assert answers(engine.generate(prompts, several, use_tqdm=False)) == answers(expected)
    assert engine.generate([], use_tqdm=False) == []


def test_requests_have_the_names_that_they_are_given(engine):
    outputs = engine.generate(["a", "b"], SHORT, request_ids=["x", "y"], use_tqdm=False)
    assert [output.request_id for output in outputs] == ["x", "y"]
    [output] = engine.generate("a", SHORT, request_ids="x", priority=1, use_tqdm=False)
    assert output.request_id == "x"
    [output] = engine.chat(MESSAGES, SHORT, request_ids="x", priority=1, use_tqdm=False)
    assert output.request_id == "x"
    unnamed = engine.generate(["a", "b"], SHORT, use_tqdm=False)
    assert len({output.request_id for output in unnamed}) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": ""}, "prompt must not be empty"),
        ({"prompts": [5, 10**6]}, "prompt token ids must be in"),
        ({"sampling_params": {"temperature": 0}}, "params must be SamplingParams"),
        ({"priority": 1.5}, "priority must be an int"),
        ({"request_ids": [5]}, "request_id must be a string, got 5"),
        (
            {"prompts": ["a", "b"], "request_ids": ["x", "x"], "sampling_params": ENDLESS},
            "request_id",
        ),
    ],
)
def test_a_wrong_request_is_refused_and_the_engine_goes_on(engine, wrong, message):
    arguments = {"prompts": "a", "sampling_params": SHORT} | wrong
    with refuses(message):
        engine.generate(use_tqdm=False, **arguments)
    assert len(engine.generate("a", SHORT, use_tqdm=False)) == 1


@pytest.mark.parametrize("wrong", [None, "adapters/one"])
def test_what_is_no_adapter_is_refused(engine, wrong):
    with refuses("lora_request must be a LoRARequest, got"):
        engine.add_lora(wrong)
    assert engine.list_loras() == set()


def test_an_aborted_request_ends_and_keeps_what_it_has(engine, reference):
    engine.abort("unknown")
    outputs: list = []

    def run():
        params = [ENDLESS, GREEDY, SamplingParams(max_tokens=None, ignore_eos=True, n=2)]
        ids = ["endless", "other", "two"]
        outputs.extend(engine.generate([PROMPT] * 3, params, request_ids=ids, use_tqdm=False))

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():  # it may not be there yet
        engine.abort("endless")
        engine.abort("two")
        thread.join(0.01)
    endless, other, two = outputs
    for completion in (*endless.outputs, *two.outputs):
        assert completion.finish_reason == "abort"
    expected = reference.generate(PROMPT, GREEDY, use_tqdm=False)
    assert answers([other]) == answers(expected)
    same = min(10, len(endless.outputs[0].token_ids))
    assert endless.outputs[0].token_ids[:same] == expected[0].outputs[0].token_ids[:same]
    while (stats := engine.stats()).num_running or stats.num_waiting:
        pass  # a pool hears of the end before the replica has cleared up


def test_truncated_prompts(engine, reference, stream, twin):
    cut = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, truncate_prompt_tokens=7)
    visible = SamplingParams(temperature=0, max_tokens=5, truncate_prompt_tokens=-1)
    size = SETTINGS["num_sink_tokens"] + SETTINGS["window_size"]
    for params, most in ((cut, 7), (visible, size)):
        plain = dataclasses.replace(params, truncate_prompt_tokens=None)
        expected = answers(reference.generate(PROMPT[-most:], plain, use_tqdm=False))
        assert answers(engine.generate(PROMPT, params, use_tqdm=False)) == expected
    assert ids(stream.complete(PROMPT, cut)) == ids(twin.complete(PROMPT[-7:], GREEDY))[:5]
    assert stream.position == 7 + 5
    list(stream.chat("hello", cut))
    assert stream.position == 2 * (7 + 5)


def test_conversations(engine, reference):
    more = [[*MESSAGES], [{"role": "system", "content": "x"}, *MESSAGES]]
    for messages, params in ((MESSAGES, GREEDY), (more, GREEDY), (more, [SHORT, GREEDY])):
        expected = answers(reference.chat(messages, params, use_tqdm=False))
        assert answers(engine.chat(messages, params, use_tqdm=False)) == expected
    [output] = engine.chat(MESSAGES, use_tqdm=False)
    assert output.outputs[0].finish_reason == "stop"  # at the end of the model's turn


def test_scores(engine, reference):
    for prompt in ("hello", PROMPT, [5]):
        scores = engine.score(prompt, use_tqdm=False)
        assert scores == pytest.approx(reference.score(prompt, use_tqdm=False), abs=1e-5)
        assert scores[0] is None
    with refuses("empty"):
        engine.score("", use_tqdm=False)


def test_a_list_of_texts_is_scored_together(implementation, engine, reference):
    prompts = [[number, 5, 6] for number in range(2, 66)]
    before = engine.stats().num_steps
    scores = engine.score(prompts, use_tqdm=False)
    steps = engine.stats().num_steps - before
    # 8 sequences fit a step. In a pool, texts arrive one by one, and what is there goes together.
    assert steps < 64 if implementation.needs_ray else steps == 8
    mixed = ["hello", PROMPT, [5], {"prompt": "a"}]
    assert len(scores) == 64
    scores += engine.score(mixed, use_tqdm=False)
    for prompt, found in zip([*prompts, *mixed], scores, strict=True):
        assert found == pytest.approx(reference.score(prompt, use_tqdm=False), abs=1e-5)
    assert engine.score([], use_tqdm=False) == []
    assert engine.score(["ab"], use_tqdm=False) == [engine.score("ab", use_tqdm=False)]


def test_if_one_text_is_refused_none_is_scored(engine):
    before = engine.stats().num_computed_tokens
    with refuses(r"^prompts\[1\]: prompt token ids must be in"):
        engine.score(["abc", [10**6]], use_tqdm=False)
    assert engine.stats().num_computed_tokens == before


def embeddings(engine, prompts) -> list[list[float]]:
    return [output.outputs.embedding for output in engine.embed(prompts, use_tqdm=False)]


def test_embeddings(engine, reference):
    mixed = ["hello", PROMPT, [5], {"prompt": "a"}]
    outputs = engine.embed(mixed, use_tqdm=False)
    assert [output.prompt for output in outputs] == ["hello", None, None, "a"]
    assert [output.prompt_token_ids for output in outputs[:3]] == [letters("hello"), PROMPT, [5]]
    for prompt, output in zip(mixed, outputs, strict=True):
        embedding = output.outputs.embedding
        assert embedding == array("f", embedding).tolist()  # each is a float32
        assert math.hypot(*embedding) == pytest.approx(1, abs=1e-6)
        for other in (engine, reference):  # alone
            assert embeddings(other, prompt) == [pytest.approx(embedding, abs=1e-5)]
    assert embeddings(engine, PROMPT) != embeddings(engine, PROMPT[:-1])
    assert engine.embed([], use_tqdm=False) == []


def test_a_list_of_texts_is_embedded_together(implementation, engine):
    prompts = [[number, 5, 6] for number in range(2, 66)]
    before = engine.stats()
    engine.embed(prompts, use_tqdm=False)
    after = engine.stats()
    steps = after.num_steps - before.num_steps
    assert steps < 64 if implementation.needs_ray else steps == 8
    assert after.num_computed_tokens - before.num_computed_tokens == 3 * 64
    assert after.num_generated_tokens == before.num_generated_tokens


def test_if_one_text_is_refused_none_is_embedded(engine):
    before = engine.stats().num_computed_tokens
    with refuses(r"^prompts\[1\]: prompt token ids must be in"):
        engine.embed(["abc", [10**6]], use_tqdm=False)
    with refuses("empty"):
        engine.embed("", use_tqdm=False)
    assert engine.stats().num_computed_tokens == before


def test_prompts_in_dicts(engine, reference):
    text, ids_only = {"prompt": "hello"}, {"prompt_token_ids": PROMPT}
    both = {"prompt_token_ids": PROMPT, "prompt": "what it stands for"}
    expected = answers(reference.generate(["hello", PROMPT, PROMPT], GREEDY, use_tqdm=False))
    assert answers(engine.generate([text, ids_only, both], GREEDY, use_tqdm=False)) == expected
    assert answers(engine.generate(text, GREEDY, use_tqdm=False)) == expected[:1]
    assert engine.score(text, use_tqdm=False) == engine.score("hello", use_tqdm=False)
    with engine.open_stream(pin=text) as stream, reference.open_stream(pin="hello") as twin:
        stream.append(ids_only)
        twin.append(PROMPT)
        same_turn(stream, twin)
        assert ids(stream.complete(text, GREEDY)) == ids(twin.complete("hello", GREEDY))
        assert stream.score(both) == pytest.approx(twin.score(PROMPT), abs=1e-5)
        with refuses("may have 'prompt' and 'prompt_token_ids', got 'text'"):
            stream.append({"text": "hello"})


def test_outputs_name_the_text_of_their_prompts(reference):
    prompts = ["a", [5], {"prompt": "a"}, {"prompt_token_ids": [5], "prompt": "five"}]
    outputs = reference.generate(prompts, SHORT, use_tqdm=False)
    assert [output.prompt for output in outputs] == ["a", None, "a", "five"]
    assert outputs[3].prompt_token_ids == [5]


def test_the_tokenizer_is_a_copy(engine, reference):
    tokenizer = engine.get_tokenizer()
    expected = reference.encode("hello")
    assert tokenizer("hello")["input_ids"] == expected
    assert engine.get_tokenizer() is tokenizer
    chat = answers(engine.chat(MESSAGES, GREEDY, use_tqdm=False))
    try:
        assert tokenizer("hello", truncation=True, max_length=2)["input_ids"] == expected[:2]
        tokenizer.chat_template = tokenizer.chat_template.replace("<", "(")
        tokenizer.add_tokens(["hello"])
        assert answers(engine.chat(MESSAGES, GREEDY, use_tqdm=False)) == chat
        [output] = engine.generate({"prompt": "hello"}, GREEDY, use_tqdm=False)
        [same] = reference.generate([expected], GREEDY, use_tqdm=False)
        assert answers([output]) == answers([same])
    finally:
        del tokenizer


def in_order(metrics, since: float) -> None:
    stages = [
        since,
        metrics.arrival_time,
        metrics.first_scheduled_time,
        metrics.first_token_time,
        metrics.finished_time,
        time.time(),
    ]
    assert stages == sorted(stages)
    assert metrics.time_in_queue == metrics.first_scheduled_time - metrics.arrival_time


def test_when_a_request_passed_its_stages(engine):
    params = [GREEDY, SamplingParams(n=2, max_tokens=3, ignore_eos=True, seed=1)]
    before = time.time()
    outputs = engine.generate([PROMPT] * 2, params, use_tqdm=False)
    for output in outputs:
        in_order(output.metrics, before)


def test_when_a_turn_passed_its_stages(engine, stream):
    stream.append(PROMPT)
    for start in (stream.generate, lambda params: stream.complete("abc", params)):
        before = time.time()
        metrics = [delta.metrics for delta in start(GREEDY)]
        in_order(metrics[-1], before)
        assert {each.arrival_time for each in metrics} == {metrics[-1].arrival_time}
        assert {each.first_token_time for each in metrics} == {metrics[-1].first_token_time}
        assert [each.finished_time for each in metrics[:-1]] == [None] * (len(metrics) - 1)


def test_statistics(engine):
    before = engine.stats()
    engine.generate(PROMPT, GREEDY, use_tqdm=False)
    with engine.open_stream():
        after = engine.stats()
        assert isinstance(after, EngineStats)
        assert after.num_generated_tokens == before.num_generated_tokens + 10
        assert after.num_streams == before.num_streams + 1
