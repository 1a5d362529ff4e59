"""With guesses, every token is what it is without them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence as Items

import pytest

from paged_stream import LLM, EngineConfig, SamplingParams
from paged_stream.scheduler.sequence import Sequence
from tests.engine.stream_oracle import text_ids
from tests.engine.test_several_steps import drain, requests
from tests.reference import tiny_llama

NGRAM = {"method": "ngram", "num_speculative_tokens": 12, "prompt_lookup_min": 1}
SETTINGS = [
    {},
    {"block_size": 4, "window_size": 5, "num_sink_tokens": 6},
    {"block_size": 16, "window_size": 1, "num_sink_tokens": 0},
    {"block_size": 2, "window_size": 9},
    {"max_num_seqs": 2, "kv_cache_memory_bytes": 100_000, "num_sink_tokens": 8},
    {"enable_prefix_caching": False, "max_num_batched_tokens": 8, "max_num_seqs": 3},
]


class Informed:
    """Guesses what will come, but for one token of most guesses."""

    num_tokens = 12

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts
        self.rng = random.Random(0)

    def forget(self, seq_id: int) -> None: ...

    def guess(self, wanted: Items[tuple[Sequence, int]]) -> list[array[int]]:
        return [self.go_on(sequence.visible_token_ids(), count) for sequence, count in wanted]

    def go_on(self, seen: array[int], count: int) -> array[int]:
        (_, end), known = max(
            ((common_end(seen, text), text) for text in self.texts), default=((0, 0), [])
        )
        guessed = array("i", known[end : end + count])
        if guessed and self.rng.random() < 0.7:
            guessed[self.rng.randrange(len(guessed))] = self.rng.randrange(97)
        return guessed


def common_end(seen: array[int], text: list[int]) -> tuple[int, int]:
    """The most last tokens of ``seen`` that are in a text, and where they end there."""
    best = 0, 0
    for end in range(1, len(text) + 1):
        length = 0
        while length < min(end, len(seen)) and text[end - 1 - length] == seen[-1 - length]:
            length += 1
        best = max(best, (length, end))
    return best


@pytest.fixture(scope="module")
def expected():
    """Results without guesses, by test: computed once."""
    return {}


def informed(engine, texts: list[list[int]]) -> None:
    engine.core.scheduler._speculator._guesser = Informed(texts)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("num_steps", [1, 8])
@pytest.mark.parametrize("knows", [False, True], ids=["lookup", "informed"])
def test_requests_of_all_kinds(make_engine, expected, settings, num_steps, knows):
    for seed in (0, 1):
        key = (str(settings), seed)
        if key not in expected:
            engine = make_engine(**settings)
            expected[key] = drain(engine, requests(engine, seed))
        engine = make_engine(num_decode_steps=num_steps, speculative_config=NGRAM, **settings)
        if knows:
            informed(engine, [tokens for tokens, _, _ in expected[key].values()])
        assert drain(engine, requests(engine, seed)) == expected[key]
        stats = engine.stats()
        assert stats.num_used_blocks == 0
        if knows and settings.get("window_size") != 1:
            assert 5 < stats.num_accepted_tokens < stats.num_draft_tokens


def say(stream, rng: random.Random, texts: list[list[int]]) -> list[int]:
    """A turn of a stream."""
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.8]),
        seed=rng.randrange(1 << 30),
        max_tokens=rng.choice([1, 5, 20, 60]),
        ignore_eos=True,
    )
    tokens = [token for delta in stream.generate(params) for token in delta.delta_token_ids]
    texts.append(tokens)
    return tokens


def lives(engine, seed: int, texts: list[list[int]]) -> list[object]:
    """What streams say that are appended to, forked, cut, rewound, parked, saved and loaded."""
    rng = random.Random(seed)
    streams, said = [engine.open_stream()], []
    streams[0].append(text_ids(30, seed))
    for _ in range(60):
        number = rng.randrange(len(streams))
        stream = streams[number]
        match rng.choice(["say", "say", "say", "append", "fork", "cut", "rewind", "park", "save"]):
            case "say":
                said.append(say(stream, rng, texts))
            case "append":
                stream.append(text_ids(rng.choice([1, 7, 40]), rng.randrange(5)))
            case "fork" if len(streams) < 5:
                streams.append(stream.fork())
            case "cut" if len(stream.visible().token_ids) > 12:
                end = stream.stats().num_tokens - 5
                stream.cut(end - 2, end)
            case "rewind" if len(stream.visible().token_ids) > 12:
                stream.rewind(stream.stats().num_tokens - 3)
            case "park":
                stream.park()
            case "save":
                saved = stream.save_bytes()
                stream.close()
                streams[number] = engine.load_stream(saved)
        engine.core.scheduler.check_integrity()
    return [*said, *(stream.visible() for stream in streams)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window_size", [12, 33])
def test_streams(make_engine, seed, window_size):
    settings = {"window_size": window_size, "block_size": 4}
    texts: list[list[int]] = []
    expected = lives(make_engine(**settings), seed, texts)
    engine = make_engine(speculative_config=NGRAM, **settings)
    assert lives(engine, seed, []) == expected
    engine = make_engine(speculative_config=NGRAM, num_decode_steps=8, **settings)
    informed(engine, texts)
    assert lives(engine, seed, []) == expected
    stats = engine.stats()
    assert stats.num_accepted_tokens > 20 and stats.num_evicted_tokens > 100


def test_right_guesses_save_steps(make_engine):
    """A text that goes round is guessed a dozen tokens at a time."""
    engine = make_engine(speculative_config=NGRAM, window_size=64)
    params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    plain = make_engine(window_size=64)
    results = []
    for each in (plain, engine):
        each.add_request("a", text_ids(40), params)
        results.append(drain(each))
    assert results[0] == results[1]
    assert engine.stats().num_generated_tokens == plain.stats().num_generated_tokens
    assert engine.stats().num_computed_tokens == plain.stats().num_computed_tokens
    assert engine.stats().num_steps < plain.stats().num_steps


def test_whole_answers(folder):
    with LLM(folder) as plain, LLM(folder, speculative_config=NGRAM) as llm:
        params = SamplingParams(temperature=0.7, seed=1, max_tokens=40)
        prompts = ["a text, a text, a text", "a", "another one"]
        answers = [
            [output.outputs[0] for output in each.generate(prompts, params, use_tqdm=False)]
            for each in (plain, llm)
        ]
        assert llm.stats().num_draft_tokens > 0
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ngram", "must be a JSON object"),
        ({}, r"\['method'\] must be one of 'ngram', 'draft_model', got None"),
        ({"method": "eagle"}, "must be one of 'ngram', 'draft_model', got 'eagle'"),
        ({"method": "ngram", "model": "x"}, "prompt_lookup_min, got 'model'"),
        ({"model": "x", "prompt_lookup_min": 2}, "num_speculative_tokens, got 'prompt_lookup_min'"),
        ({"method": "draft_model"}, r"\['model'\] must be a name"),
        ({"method": "ngram", "num_speculative_tokens": 0}, r"tokens'\] must be >= 1, got 0"),
        ({"model": "x", "num_speculative_tokens": 16}, r"tokens'\] must be <= 15, got 16"),
        (
            {"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 2},
            r"must be <= prompt_lookup_max \(2\), got 5",
        ),
    ],
)
def test_what_is_no_speculation_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        EngineConfig(model="m", speculative_config=value)


def test_what_is_left_out_has_a_value():
    config = EngineConfig(model="m", speculative_config={"method": "ngram", "prompt_lookup_min": 6})
    assert config.speculative_config == {
        "method": "ngram",
        "num_speculative_tokens": 8,
        "prompt_lookup_max": 6,
        "prompt_lookup_min": 6,
    }


@pytest.fixture(scope="module")
def drafts(tmp_path_factory):
    """Models that guess: the same one, which is always right, and another, which seldom is."""
    folder = tmp_path_factory.mktemp("drafts")
    for number in (0, 1):
        tiny_llama(number).save_pretrained(folder / str(number))
    return [str(folder / "0"), str(folder / "1")]


@pytest.mark.parametrize("which", [0, 1], ids=["same", "other"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_requests_of_all_kinds_with_a_draft_model(make_engine, expected, drafts, settings, which):
    speculation = {"model": drafts[which], "num_speculative_tokens": 3}
    for seed in (0, 1):
        key = (str(settings), seed)
        if key not in expected:
            engine = make_engine(**settings)
            expected[key] = drain(engine, requests(engine, seed))
        engine = make_engine(speculative_config=speculation, **settings)
        assert drain(engine, requests(engine, seed)) == expected[key]
        stats = engine.stats()
        if settings.get("window_size") != 1:
            assert stats.num_draft_tokens > 20
            right = stats.num_accepted_tokens / stats.num_draft_tokens
            # What a token's keys and values have seen of evicted ones is not told again.
            assert right > 0.6 if which == 0 else right < 0.4
        guesser = engine.core.scheduler._speculator._guesser
        assert not guesser._scheduler.sequences


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("which", [0, 1], ids=["same", "other"])
def test_streams_with_a_draft_model(make_engine, drafts, seed, which):
    settings = {"window_size": 33, "block_size": 4}
    expected = lives(make_engine(**settings), seed, [])
    speculation = {"model": drafts[which], "num_speculative_tokens": 4}
    engine = make_engine(speculative_config=speculation, **settings)
    assert lives(engine, seed, []) == expected
    stats = engine.stats()
    assert stats.num_draft_tokens > 30
    assert which == 1 or stats.num_accepted_tokens > 20


def test_the_same_model_guesses_right(make_engine, drafts):
    speculation = {"model": drafts[0], "num_speculative_tokens": 5}
    engine = make_engine(speculative_config=speculation, window_size=120)
    for temperature in (0.0, 0.9):
        params = SamplingParams(temperature=temperature, seed=3, max_tokens=61, ignore_eos=True)
        engine.add_request("a", text_ids(40), params)
        tokens, _, _ = drain(engine)["a", 0]
        assert len(tokens) == 61
    stats = engine.stats()
    assert stats.num_accepted_tokens == stats.num_draft_tokens == 2 * 50
    assert stats.num_steps <= 2 * (2 + 10)  # the prompt has two chunks


def test_a_draft_model_that_fails_costs_no_token(make_engine, drafts, caplog):
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    engine = make_engine(speculative_config={"model": drafts[0]})
    engine.add_request("a", text_ids(30), params)
    expected = drain(engine)
    executor = engine.core.scheduler._speculator._guesser._stepper._executor
    executor.submit = None
    engine.add_request("a", text_ids(30), params)
    assert drain(engine) == expected
    assert caplog.text.count("the draft model has failed") == 1
    assert engine.stats().num_steps > 40


def test_a_draft_model_with_another_vocabulary_is_refused(folder, tmp_path):
    tiny_llama(0, vocab_size=90).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have the model's vocabulary of 97 tokens, but"):
        LLM(folder, speculative_config={"model": str(tmp_path)})
