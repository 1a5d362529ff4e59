"""What `paged_stream.engine.api` promises, of every engine and stream that there is."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import ANY

import pytest

from paged_stream import (
    EngineConfig,
    EngineStoppedError,
    LLMEngine,
    SamplingParams,
    StructuredOutputsParams,
)
from paged_stream.engine.outputs import EngineStats, VisibleText
from paged_stream.text.chat_options import ChatOptions
from tests.engine.contract import CLASSES, ENGINES, EVERY_ENGINE, SETTINGS

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
RANDOM = SamplingParams(temperature=1.5, max_tokens=10, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
PROMPT = [i % 90 + 2 for i in range(50)]
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module", params=EVERY_ENGINE)
def implementation(request):
    if request.param.needs_ray:
        request.getfixturevalue("ray")
    return request.param


@pytest.fixture(scope="module")
def engine(implementation, folder) -> Iterator:
    with implementation.make(folder) as engine:
        yield engine


@pytest.fixture
def own_engine(implementation, folder) -> Iterator:
    """One that the test may close."""
    engine = implementation.make(folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(folder) -> Iterator[LLMEngine]:
    """What the results of the others are compared with."""
    with LLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        yield engine


@pytest.fixture
def stream(engine) -> Iterator:
    with engine.open_stream() as stream:
        yield stream


@pytest.fixture
def twin(reference) -> Iterator:
    """A stream of the reference."""
    with reference.open_stream() as stream:
        yield stream


def ids(deltas) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.delta_token_ids]


def answers(outputs) -> list[tuple]:
    return [(each.text, each.token_ids, each.finish_reason) for o in outputs for each in o.outputs]


def same_turn(stream, twin, params=GREEDY) -> None:
    assert ids(stream.generate(params)) == ids(twin.generate(params))
    assert stream.position == twin.position


def refuses(message: str):
    return pytest.raises(ValueError, match=message)


# The shape


def public(cls: type) -> set[str]:
    shown = {"__enter__", "__exit__", "__aenter__", "__aexit__"}
    return {name for name in dir(cls) if not name.startswith("_") or name in shown}


def table() -> str:
    """Methods by implementations; an empty cell is a promise that is not kept."""
    lines = []
    for kind in ("EngineApi", "StreamApi"):
        classes = [cls for cls, (api, _) in CLASSES.items() if api.__name__.endswith(kind)]
        names = {name.replace("__a", "__") for cls in classes for name in public(CLASSES[cls][0])}
        lines.append(f"{kind:<14}" + " ".join(f"{cls.__name__:>15}" for cls in classes))
        for name in sorted(names):
            cells = ["yes" if has(cls, name) else "" for cls in classes]
            lines.append(f"{name:<14}" + " ".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def has(cls: type, name: str) -> bool:
    api = CLASSES[cls][0]
    if name.startswith("__") and "Async" in api.__name__:
        name = name.replace("__", "__a", 1)
    return getattr(cls, name, None) is not getattr(api, name)


def test_every_class_has_what_its_protocol_says():
    print(f"\n{table()}")  # pytest -s shows it
    for cls, (api, _) in CLASSES.items():
        for name in public(api):
            assert getattr(cls, name) is not getattr(api, name), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_nothing_is_public_but_the_contract_and_what_is_listed(cls):
    api, own = CLASSES[cls]
    assert public(cls) - public(api) - own == set()


def test_objects_have_no_other_attributes_either(implementation, folder):
    with implementation.make(folder) as engine, engine.open_stream() as stream:
        for thing in (engine, stream):
            thing = thing.inner if implementation.is_async else thing
            api, own = CLASSES[type(thing)]
            attributes = {name for name in vars(thing) if not name.startswith("_")}
            assert attributes - own == set()
            assert own - attributes - public(type(thing)) == set(), "it is listed and not there"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_signatures_are_those_of_the_protocol(cls):
    api, _ = CLASSES[cls]
    for name in public(api):
        theirs, ours = getattr(api, name), getattr(cls, name)
        if isinstance(theirs, property):
            assert isinstance(ours, property), f"{cls.__name__}.{name}"
            continue
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs), name
        wanted, found = (
            [(p.name, p.kind, p.default) for p in inspect.signature(each).parameters.values()]
            for each in (theirs, ours)
        )
        assert found == wanted, f"{cls.__name__}.{name}"


def test_asynchronous_protocols_have_the_synchronous_ones_methods():
    apis = {api.__name__: api for api, _ in CLASSES.values()}
    for kind in ("EngineApi", "StreamApi"):
        names = {name.replace("__a", "__") for name in public(apis[f"Async{kind}"])}
        assert names == public(apis[kind])
    for api in apis.values():
        assert all(getattr(api, name).__doc__ for name in public(api) if name[0] != "_")


# Engines


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


def letters(text: str) -> list[int]:
    """Token ids of a text, in the vocabulary of `save_tokenizer`."""
    return [ord(letter) - 30 for letter in text]


def likely(text: str, bias: float = 100.0) -> dict[int, float]:
    return dict.fromkeys(letters(text), bias)


def ways_to_sample() -> list[SamplingParams]:
    """One for each field that says more than how to draw."""

    def counts(token_ids, logits):  # within this function, so that Ray sends the code along
        logits[letters("0")[0] + len(token_ids)] += 1000
        return logits

    base: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    return [
        SamplingParams(**base, allowed_token_ids=letters("ab"), logit_bias=likely("bc")),
        SamplingParams(**base, logit_bias=likely("b") | likely("a", 50.0), bad_words=["bb", "aa"]),
        SamplingParams(**base, logits_processors=counts),
        SamplingParams(**base, logits_processors=counts, stop=["23", "45"], min_tokens=4),
        SamplingParams(
            **base, logits_processors=counts, stop="23", include_stop_str_in_output=True
        ),
        SamplingParams(**base, logits_processors=counts, stop_token_ids=letters("2")),
        SamplingParams(
            **base,
            logits_processors=counts,
            stop_token_ids=letters("2"),
            include_stop_str_in_output=True,
        ),
        SamplingParams(**base, logits_processors=counts, detokenize=False),
        SamplingParams(**base, logit_bias={0: 100.0}, skip_special_tokens=False, stop="s>"),
        SamplingParams(**base, logit_bias={0: 100.0}, stop="</s>"),
        SamplingParams(temperature=0, logit_bias={0: 100.0}),
        SamplingParams(**base, structured_outputs=StructuredOutputsParams(choice=["cab"])),
        SamplingParams(**base, structured_outputs=StructuredOutputsParams(regex="[0-9]{9}")),
    ]


SAMPLED = [  # text, number of tokens, why it ended
    ("bbbbbb", 6, "length", None),
    ("bababa", 6, "length", None),
    ("012345", 6, "length", None),
    ("0123", 6, "stop", "45"),
    ("0123", 4, "stop", "23"),
    ("01", 3, "stop", letters("2")[0]),
    ("012", 3, "stop", letters("2")[0]),
    ("", 6, "length", None),
    ("</", 1, "stop", "s>"),
    ("", 1, "stop", "</s>"),
    ("", 1, "stop", None),
    ("cab", 3, "stop", None),
    (ANY, 6, "length", None),
]


def test_every_way_to_sample(engine, stream):
    params = ways_to_sample()
    outputs = engine.generate([PROMPT] * len(params), params, use_tqdm=False)
    completions = [output.outputs[0] for output in outputs]
    assert SAMPLED == [
        (each.text, len(each.token_ids), each.finish_reason, each.stop_reason)
        for each in completions
    ]
    for each, expected in zip(params, SAMPLED, strict=True):
        deltas = list(stream.complete(PROMPT, each))
        text, last = "".join(delta.delta_text for delta in deltas), deltas[-1]
        assert (text, len(ids(deltas)), last.finish_reason, last.stop_reason) == expected


NO_EXPRESSION = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a("))


def test_structures_that_cannot_be_are_refused_at_once(engine, stream):
    for refused in (
        lambda: engine.generate(PROMPT, NO_EXPRESSION, use_tqdm=False),
        lambda: engine.chat(MESSAGES, NO_EXPRESSION, use_tqdm=False),
        lambda: list(stream.complete(PROMPT, NO_EXPRESSION)),
        lambda: list(stream.chat("hello", NO_EXPRESSION)),
    ):
        with refuses("structured_outputs: regex cannot be used: .*unclosed group"):
            refused()
    assert stream.position == 0
    stream.append(PROMPT)
    with refuses("structured_outputs: regex"):
        list(stream.generate(NO_EXPRESSION))
    assert len(ids(stream.generate(GREEDY))) == 10


def test_a_structure_is_of_one_turn(engine, stream, twin):
    params = SamplingParams(
        seed=1, max_tokens=50, structured_outputs=StructuredOutputsParams(regex="(ab?){8}[0-9]{8}")
    )
    for _ in range(3):  # the window is smaller than two of these
        text = "".join(delta.delta_text for delta in stream.complete(PROMPT, params))
        assert re.fullmatch("(ab?){8}[0-9]{8}", text)
        assert "".join(delta.delta_text for delta in twin.complete(PROMPT, params)) == text
        same_turn(stream, twin)


def test_a_function_that_fails_ends_its_request(engine, stream, reference):
    def fails(token_ids, logits):
        return logits if len(token_ids) < 3 else None

    failing = SamplingParams(temperature=0, max_tokens=10, logits_processors=fails, ignore_eos=True)
    bad, good = engine.generate([PROMPT] * 2, [failing, GREEDY], use_tqdm=False)
    assert answers([good]) == answers(reference.generate(PROMPT, GREEDY, use_tqdm=False))
    assert bad.outputs[0].finish_reason == "error" and "fails" in bad.outputs[0].error
    assert bad.outputs[0].token_ids == good.outputs[0].token_ids[:3]
    deltas = list(stream.complete(PROMPT, failing))
    assert len(ids(deltas)) == 3 and deltas[-1].finish_reason == "error"
    assert len(ids(stream.generate(GREEDY))) == 10


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


def test_streams_are_opened_as_they_are_asked_for(engine, reference):
    pin = [{"role": "system", "content": "be brief"}]
    for options in ({"pin": pin}, {"pin": "abc", "window_size": 12}, {"num_sink_tokens": 0}):
        with engine.open_stream(**options) as stream, reference.open_stream(**options) as twin:
            for each in (stream, twin):
                each.append(PROMPT)
            same_turn(stream, twin)
            assert stream.stats().window_start == twin.stats().window_start
    for options, message in (
        ({"pin": "abc", "num_sink_tokens": 3}, "pass one of them"),
        ({"window_size": 0}, "window_size must be"),
        ({"pin": []}, "empty"),
    ):
        with refuses(message):
            engine.open_stream(**options)
    assert engine.stats().num_streams == 0


def test_evictions_are_told_in_order(engine):
    told: list[tuple[int, int]] = []
    with engine.open_stream(on_evict=lambda *span: told.append(span)) as stream:
        stream.append(PROMPT)
        list(stream.generate(GREEDY))
        window_start, parent = stream.stats().window_start, len(told)
        assert told[0][0] == SETTINGS["num_sink_tokens"] and told[-1][1] == window_start
        assert all(before[1] == after[0] for before, after in zip(told, told[1:], strict=False))
        of_fork: list[tuple[int, int]] = []
        with stream.fork(on_evict=lambda *span: of_fork.append(span)) as fork:
            list(fork.generate(GREEDY))
            content, end = fork.save_bytes(), fork.stats().window_start
        assert of_fork[0][0] == window_start and of_fork[-1][1] == end
        assert len(told) == parent
    loaded: list[tuple[int, int]] = []
    with engine.load_stream(content, on_evict=lambda *span: loaded.append(span)) as stream:
        list(stream.generate(GREEDY))
    assert loaded[0][0] == end


def test_what_cannot_be_loaded_is_refused(engine, tmp_path, stream):
    (tmp_path / "garbage").write_bytes(b"garbage")
    for source, message in (
        (tmp_path / "absent", "there is no file"),
        (tmp_path / "garbage", "garbage is truncated or no stream"),
        (b"garbage", "the content is truncated or no stream"),
        (stream.save_bytes()[:-1], "the content is truncated or no stream"),
    ):
        with refuses(message):
            engine.load_stream(source)


# Streams


def test_turns(stream, twin):
    assert stream.position == 0 and not stream.is_generating
    for prompt in (PROMPT, "and on", PROMPT * 3):
        stream.append(prompt)
        twin.append(prompt)
        assert stream.position == twin.position
        same_turn(stream, twin)
    deltas = list(stream.complete("what", GREEDY))
    assert ids(deltas) == ids(twin.complete("what", GREEDY))
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].finish_reason == "length"
    for messages in ("hello", [*MESSAGES, *MESSAGES]):
        assert ids(stream.chat(messages, GREEDY)) == ids(twin.chat(messages, GREEDY))
    assert list(stream.chat("hello"))[-1].finish_reason == "stop"  # at the end of its turn


TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}({{ m.role }}) "
    "{{ m.content }}{{ end | default('.') }}{% endfor %}"
    "{% if add_generation_prompt %}(me){% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f"}}]
SAID = [*MESSAGES, {"role": "assistant", "content": "well"}]
WRITTEN = [
    (MESSAGES, {"chat_template": TEMPLATE}),
    (MESSAGES, {"chat_template": TEMPLATE, "chat_template_kwargs": {"end": "?"}}),
    (MESSAGES, {"chat_template": TEMPLATE, "add_generation_prompt": False, "tools": TOOLS}),
    (SAID, {"add_generation_prompt": False, "continue_final_message": True}),
    ([{"role": "user", "content": [{"type": "text", "text": "parts"}]}], {}),
]


def test_conversations_are_written_as_their_options_say(engine, reference, stream):
    tokenizer = reference.tokenizer
    for messages, options in WRITTEN:
        text = tokenizer.render_chat_template(messages, ChatOptions(**options))
        prompt = tokenizer.encode(text, add_special_tokens=False)
        [expected] = answers(reference.generate(prompt, GREEDY, use_tqdm=False))
        [found] = answers(engine.chat(messages, GREEDY, use_tqdm=False, **options))
        assert found == expected
        with engine.open_stream() as own:
            assert ids(own.chat(messages, GREEDY, **options)) == expected[1]
    for options in ({"tools": "x"}, {"continue_final_message": True}):
        [name] = options
        with refuses(name):
            engine.chat(MESSAGES, GREEDY, use_tqdm=False, **options)
        with refuses(name):
            next(stream.chat(MESSAGES, GREEDY, **options))
    assert stream.position == 0


def test_later_messages_are_written_as_their_options_say(stream, twin):
    options = {"chat_template": TEMPLATE, "chat_template_kwargs": {"end": "?"}}
    assert ids(stream.chat("a", GREEDY)) == ids(twin.chat("a", GREEDY))
    twin.append("?(user) b?(me)")
    assert ids(stream.chat("b", GREEDY, **options)) == ids(twin.generate(GREEDY))


LOOKS_BACK = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role == 'user' else "
    "m.content.split('/')[-1] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WIDE: dict[str, Any] = {"chat_template": LOOKS_BACK, "window_size": 200}


def said_before(stream) -> None:
    """A question, and an answer that `LOOKS_BACK` rewrites."""
    list(stream.chat("a", SHORT))
    stream.rewind(stream.position - SHORT.max_tokens)
    stream.append("x/y")


def test_what_a_template_rewrites_is_kept_or_cut_or_refused(engine, reference):
    with engine.open_stream(**WIDE) as stream:
        said_before(stream)
        text, position = stream.visible().text, stream.position
        with refuses("on_rewrite='error': .* writes 'y' where the stream has 'x/y'"):
            next(stream.chat("b", GREEDY, on_rewrite="error"))
        with refuses("on_rewrite must be 'keep', 'cut' or 'error', got 'no'"):
            next(stream.chat("b", GREEDY, on_rewrite="no"))
        assert (stream.visible().text, stream.position) == (text, position)
        stream.park()
        copies = [engine.load_stream(stream.save_bytes()), stream.fork()]
        for each, on_rewrite, kept in (
            (stream, "keep", text),
            (copies[0], "cut", text.replace("x/y", "y")),
            (copies[1], "cut", text.replace("x/y", "y")),
        ):
            deltas = list(each.chat("b", GREEDY, on_rewrite=on_rewrite))
            assert all(delta.template_rewrote for delta in deltas)
            assert each.position > position
            with reference.open_stream(window_size=200) as fresh:
                fresh.append(kept + "</s><user>b</s><assistant>")
                assert ids(deltas) == ids(fresh.generate(GREEDY))
            each.rewind(each.position - GREEDY.max_tokens)  # only what was kept differs now
            assert next(each.chat("c", SHORT)).template_rewrote == (on_rewrite == "keep")
        for each in copies:
            each.close()


def test_a_stream_is_written_as_it_was_opened(engine):
    pin = [{"role": "user", "content": "be brief"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    with engine.open_stream(pin=pin, chat_template=TEMPLATE, tools=tools) as stream:
        text = stream.visible().text
        assert text.startswith('[{"type": "function"') and text.endswith("(user)")
        list(stream.chat("hello", SHORT))
        stream.rewind(stream.position - SHORT.max_tokens)
        assert stream.visible().text.endswith(" hello.(me)")
    with refuses("tools"):
        engine.open_stream(tools="x")


def test_a_completed_prompt_is_an_appended_one(stream, twin):
    twin.append(PROMPT)
    assert ids(stream.complete(PROMPT, GREEDY)) == ids(twin.generate(GREEDY))


def test_scores_of_a_stream_are_those_of_its_text(engine, stream):
    whole = engine.score(PROMPT, use_tqdm=False)
    parts = stream.score(PROMPT[:20]) + stream.score(PROMPT[20:21]) + stream.score(PROMPT[21:])
    assert parts == pytest.approx(whole, abs=1e-5)
    assert stream.position == len(PROMPT)
    stream.rewind(40)
    again = stream.score(PROMPT[40:])
    assert again[0] is None and None not in again[1:]


def test_texts_that_follow_each_other_are_one_text(reference, stream):
    stream.append("hello wor")
    stream.score("ld, ")
    stream.append("and")
    assert stream.visible().token_ids == reference.encode("hello world, and")
    assert stream.visible().text == "hello world, and"


def test_what_the_next_token_will_see(engine, reference, stream):
    """Four sinks, and of a window of 24 what is before the next token."""
    assert stream.visible() == VisibleText(num_sink_tokens=0, runs=[])
    text = "abcdefghijklmnopqrstuvwxyz"
    stream.append(text)
    [whole] = stream.visible().runs
    assert (whole.start, whole.text, whole.missing) == (0, text, None)
    assert whole.token_ids == reference.encode(text)
    stream.append(text)
    told = [(0, "abcd", None), (29, text[3:], "evicted")]
    assert runs(stream) == told
    stream.cut(35, 40)  # jklmn
    told = [(0, "abcd", None), (33, "cdefghi", "evicted"), (40, "opqrstuvwxyz", "cut")]
    assert runs(stream) == told
    loaded, fork = engine.load_stream(stream.save_bytes()), stream.fork()
    for each in (loaded, fork):
        assert runs(each) == told
        each.append("ABCDEFGH")
        told_later = [
            (0, "abcd", None),
            (37, "ghi", "evicted"),
            (40, text[14:] + "ABCDEFGH", "cut"),
        ]
        assert runs(each) == told_later
        assert each.stats().num_sink_tokens == each.visible().num_sink_tokens == 4
        each.close()
    stream.cut(46, 51)
    told = [(38, "cdefghi", "evicted"), (45, "opqrst", "cut"), (51, "z", "cut")]
    assert runs(stream)[1:] == told


def runs(stream) -> list[tuple]:
    return [(run.start, run.text, run.missing) for run in stream.visible().runs]


def test_a_pin_is_what_every_conversation_begins_with(engine):
    pin = [{"role": "system", "content": "be brief"}]
    with engine.open_stream(pin=pin, window_size=100) as stream:
        assert stream.visible().text == "<system>be brief</s><user>"
        assert stream.stats().num_sink_tokens == stream.position
        list(stream.chat("hello", GREEDY))
        begin = "<system>be brief</s><user>hello</s><assistant>"
        assert stream.visible().text.startswith("<system>be brief</s><user>")
        stream.rewind(stream.position - GREEDY.max_tokens)
        assert stream.visible().text == begin


def test_a_turn_begins_with_its_first_item(stream):
    stream.append(PROMPT)
    for deltas in (stream.generate(GREEDY), stream.complete("a", GREEDY), stream.chat("a", GREEDY)):
        assert stream.position == len(PROMPT) and not stream.is_generating
        deltas.close()
    assert stream.position == len(PROMPT)


@pytest.mark.parametrize("start", ["generate", "complete", "chat"])
def test_during_a_turn(stream, start, tmp_path):
    stream.append(PROMPT)
    arguments = () if start == "generate" else ("hello",)
    deltas = getattr(stream, start)(*arguments, ENDLESS)
    seen = ids([next(deltas)])
    assert stream.is_generating
    for use in (
        lambda: next(stream.generate(SHORT)),
        lambda: next(stream.complete("a", SHORT)),
        lambda: next(stream.chat("a", SHORT)),
        lambda: stream.score("a"),
        lambda: stream.fork(),
        lambda: stream.cut(30, 40),
        lambda: stream.rewind(40),
        lambda: stream.park(),
        lambda: stream.save(tmp_path / "a"),
        lambda: stream.save_bytes(),
    ):
        with refuses("the stream is generating"):
            use()
    stream.append("queued")
    assert stream.stats().num_pending_tokens >= len("queued")
    assert stream.visible().num_sink_tokens == 4
    stream.end_turn()
    rest = list(deltas)
    assert not any(delta.finished for delta in rest)
    assert not stream.is_generating
    appended = len(PROMPT) + len("queued") + len(seen) + len(ids(rest))
    assert stream.position >= appended
    stream.end_turn()  # there is none
    assert len(ids(stream.generate(GREEDY))) == 10


def test_leaving_a_turn_ends_it(stream, twin):
    for each in (stream, twin):
        each.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    got = ids([next(deltas), next(deltas)])
    deltas.close()
    assert not stream.is_generating
    generated = stream.stats().num_tokens - len(PROMPT)
    whole = ids(twin.generate(SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)))
    assert generated >= len(got) and got == whole[: len(got)]
    # What was generated and not read is part of the stream.
    assert ids(stream.generate(GREEDY)) == whole[generated : generated + 10]


def test_what_is_refused_leaves_the_stream_as_it_was(stream):
    with refuses("the stream is empty; append"):
        next(stream.generate(SHORT))
    stream.append(PROMPT)
    several = SamplingParams(n=2)
    for use, message in (
        (lambda: next(stream.generate(several)), "n must be 1 for a stream"),
        (lambda: next(stream.complete("abc", several)), "n must be 1 for a stream"),
        (lambda: next(stream.chat("abc", several)), "n must be 1 for a stream"),
        (lambda: next(stream.generate({"n": 1})), "params must be SamplingParams"),
        (lambda: next(stream.complete("", SHORT)), "empty"),
        (lambda: next(stream.chat([], SHORT)), "messages must be"),
        (lambda: stream.append([10**6]), "prompt token ids must be in"),
        (lambda: stream.score(""), "empty"),
        (lambda: stream.cut(3, 2), "start and end must be a span"),
        (lambda: stream.cut("a", 2), "start must be an int"),
        (lambda: stream.rewind(10**6), "position must be at least"),
        (lambda: stream.rewind(0), "position must be at least"),
    ):
        with refuses(message):
            use()
        assert stream.position == len(PROMPT) and not stream.is_generating


def test_edits(stream, twin, tmp_path):
    for each in (stream, twin):
        each.append(PROMPT)
        list(each.generate(GREEDY))
        each.cut(45, 50)
    same_turn(stream, twin)
    for each in (stream, twin):
        each.rewind(each.position - 8)
    same_turn(stream, twin)
    stream.park()
    assert stream.stats().location in ("host", "disk")
    same_turn(stream, twin)
    with stream.fork() as fork, twin.fork() as other:
        fork.append("fork")
        other.append("fork")
        same_turn(fork, other)
    same_turn(stream, twin)


def test_a_saved_stream_goes_on_anywhere(engine, reference, stream, twin, tmp_path):
    """With the seeds of its own, which no other stream would draw from."""
    for each in (stream, twin):
        each.append(PROMPT)
        list(each.generate(RANDOM))
    stream.save(tmp_path / "theirs")
    twin.save(tmp_path / "reference")
    for path, content in (("theirs", stream.save_bytes()), ("reference", twin.save_bytes())):
        expected: list[list[int]] | None = None
        for loads in (engine, reference):
            for source in (tmp_path / path, content):
                with loads.load_stream(source) as loaded:
                    turns = [ids(loaded.generate(RANDOM)) for _ in range(3)]
                    assert loaded.position == len(PROMPT) + 40
                expected = turns if expected is None else expected
                assert turns == expected
                assert len({tuple(turn) for turn in turns}) == 3
    assert [ids(twin.generate(RANDOM)) for _ in range(3)] == expected


def test_forks_draw_on_their_own(stream):
    stream.append(PROMPT)
    with stream.fork() as first, stream.fork() as second:
        turns = [ids(each.generate(RANDOM)) for each in (stream, first, second)]
    assert len({tuple(turn) for turn in turns}) == 3


def test_more_than_may_queue_behind_a_turn(implementation, engine, stream, monkeypatch):
    monkeypatch.setattr("paged_stream.engine.stream_rules.MAX_QUEUED_TOKENS", 10)
    stream.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    next(deltas)
    stream.append([20] * 8)
    if not implementation.is_async:
        with refuses("at most 10 tokens may queue"):
            stream.append([21] * 3)
        deltas.close()
        return
    waiting = stream.loop.submit(stream.inner.append([21] * 3))
    stream.append([22] * 2)  # for these there is room
    assert not waiting.done()
    position = stream.position
    deltas.close()
    waiting.result()
    assert stream.position >= position + 8 + 2 + 3


# The end


def uses(stream, tmp_path):
    yield lambda: stream.position
    yield lambda: stream.is_generating
    yield lambda: stream.append("a")
    yield lambda: next(stream.generate(SHORT))
    yield lambda: next(stream.complete("a", SHORT))
    yield lambda: next(stream.chat("a", SHORT))
    yield lambda: stream.score("a")
    yield lambda: stream.end_turn()
    yield lambda: stream.fork()
    yield lambda: stream.cut(30, 40)
    yield lambda: stream.rewind(40)
    yield lambda: stream.park()
    yield lambda: stream.save(tmp_path / "a")
    yield lambda: stream.save_bytes()
    yield lambda: stream.stats()
    yield lambda: stream.visible()
    yield lambda: stream.__enter__()


def test_a_closed_stream(engine, tmp_path):
    stream = engine.open_stream()
    stream.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    next(deltas)
    for _ in range(2):
        stream.close()
    assert not any(delta.finished for delta in deltas)
    for use in uses(stream, tmp_path):
        with refuses("^the stream is closed$"):
            use()
    assert "closed" in repr(stream if not hasattr(stream, "loop") else stream.inner)
    assert engine.stats().num_streams == 0


def test_a_closed_engine(own_engine, tmp_path):
    engine = own_engine
    stream = engine.open_stream()
    stream.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    next(deltas)
    for _ in range(2):
        engine.close()
    engine_uses = [
        lambda: engine.generate("a", SHORT, use_tqdm=False),
        lambda: engine.chat(MESSAGES, SHORT, use_tqdm=False),
        lambda: engine.score("a", use_tqdm=False),
        lambda: engine.score(["a", "b"], use_tqdm=False),
        lambda: engine.get_tokenizer(),
        lambda: engine.open_stream(),
        lambda: engine.load_stream(tmp_path),
        lambda: engine.abort("a"),
        lambda: engine.stats(),
        lambda: engine.__enter__(),
        lambda: list(deltas),
    ]
    for use in (*engine_uses, *uses(stream, tmp_path)):
        with pytest.raises(EngineStoppedError, match="closed"):
            use()
    stream.close()


def test_neither_is_pickled_nor_copied(engine, stream):
    for thing in (engine, stream):
        thing = getattr(thing, "inner", thing) if hasattr(thing, "loop") else thing
        for function in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                function(thing)


# Cancellation


ASYNC_ENGINES = [each for each in EVERY_ENGINE if ENGINES[str(each.id)].is_async]


@pytest.mark.parametrize("implementation", ASYNC_ENGINES, indirect=True, scope="module")
def test_cancelling_who_reads_ends_what_is_read(engine, stream):
    stream.append(PROMPT)
    begun = threading.Event()

    async def read(deltas):
        async for _ in deltas:
            begun.set()

    for start in (
        lambda: engine.inner.generate(PROMPT, ENDLESS),
        lambda: engine.inner.chat(MESSAGES, ENDLESS),
        lambda: stream.inner.generate(ENDLESS),
        lambda: stream.inner.complete("a", ENDLESS),
    ):
        begun.clear()
        reading = stream.loop.submit(read(start()))
        begun.wait()
        reading.cancel()
        while engine.stats().num_running or stream.is_generating:
            pass  # a replica's turn ends before the pool hears of it
    assert len(ids(stream.generate(GREEDY))) == 10


@pytest.mark.parametrize("implementation", ASYNC_ENGINES, scope="module")
def test_what_is_appended_meanwhile_is_not_scored(engine, stream):
    prompt = PROMPT * 40
    scoring = stream.loop.submit(stream.inner.score(prompt))
    while not (stream.stats().num_pending_tokens or scoring.done()):
        pass
    stream.append("abc")
    assert scoring.result() == pytest.approx(engine.score(prompt, use_tqdm=False), abs=1e-5)
    assert stream.position == len(prompt) + 3


if __name__ == "__main__":
    print(table())
