"""Requests through the engine: deltas, stops, aborts, errors that hurt nobody else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from paged_stream import LLM, EngineConfig, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = [[5, 6, 7], list(range(2, 70)), [9] * 33]


def drain(engine) -> dict[str, list]:
    deltas: dict[str, list] = {}
    while engine.has_unfinished_requests():
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def tokens(deltas) -> list[int]:
    return [token for delta in deltas for token in delta.delta_token_ids]


def alone(engine, prompt, params) -> list[int]:
    engine.add_request("alone", prompt, params)
    return tokens(drain(engine)["alone"])


def test_requests_do_not_disturb_each_other(make_engine):
    engine = make_engine()
    expected = {str(i): alone(engine, prompt, GREEDY) for i, prompt in enumerate(PROMPTS)}
    deltas = []
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(str(index), prompt, GREEDY)
        deltas += engine.step()  # the earlier ones decode while the later ones prefill
    for rest in drain(engine).values():
        deltas += rest
    for request_id, want in expected.items():
        mine = [delta for delta in deltas if delta.request_id == request_id]
        assert tokens(mine) == want
        assert [delta.finished for delta in mine] == [False] * (len(mine) - 1) + [True]
        assert mine[-1].finish_reason == "length"


def test_blocks_come_back(make_engine):
    engine = make_engine()
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(str(index), prompt, GREEDY)
    assert engine.stats().num_waiting == 3
    engine.step()
    assert engine.stats().num_used_blocks > 0
    drain(engine)
    stats = engine.stats()
    assert stats.num_used_blocks == stats.num_running == stats.num_waiting == 0
    assert stats.num_generated_tokens == 36


def test_abort_frees_and_silences(make_engine):
    engine = make_engine()
    expected = alone(engine, PROMPTS[0], GREEDY)
    engine.add_request("stays", PROMPTS[0], GREEDY)
    engine.add_request("goes", PROMPTS[1], SamplingParams(n=3, max_tokens=None))
    first = tokens(d for d in engine.step() if d.request_id == "stays")
    engine.abort_request("goes")
    engine.abort_request("goes")
    deltas = drain(engine)
    assert set(deltas) == {"stays"} and first + tokens(deltas["stays"]) == expected
    assert engine.stats().num_used_blocks == 0
    engine.add_request("goes", PROMPTS[2], GREEDY)  # the id is free again


def test_stop_string_cuts_text_and_frees_blocks(make_engine):
    engine = make_engine()
    engine.add_request("whole", "hello", GREEDY)
    whole = "".join(d.delta_text for d in drain(engine)["whole"])
    stop = whole[4:6]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=[stop])
    engine.add_request("cut", "hello", params)
    deltas = drain(engine)["cut"]
    assert "".join(d.delta_text for d in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason == "stop"
    assert engine.stats().num_used_blocks == 0


def test_stop_token_is_reported_but_has_no_text(make_engine):
    engine = make_engine()
    ids = alone(engine, "hello", GREEDY)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[ids[5]])
    engine.add_request("stop", "hello", params)
    deltas = drain(engine)["stop"]
    end = ids.index(ids[5]) + 1
    assert tokens(deltas) == ids[:end]
    assert len("".join(d.delta_text for d in deltas)) == end - 1


def test_n_completions_differ_and_are_reproducible(make_engine):
    params = SamplingParams(n=3, max_tokens=10, seed=5, ignore_eos=True)
    runs = []
    for engine in (make_engine(), make_engine(max_num_seqs=2)):
        engine.add_request("r", "abc", params)
        deltas = drain(engine)["r"]
        runs.append([tokens(d for d in deltas if d.index == i) for i in range(3)])
    assert runs[0] == runs[1] and len({tuple(run) for run in runs[0]}) == 3


def test_engine_seed_decides_where_the_request_does_not(make_engine):
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    first, again, other = (alone(make_engine(seed=s), "abc", params) for s in (1, 1, 2))
    assert first == again != other


def test_prompt_logprobs_come_with_the_output(folder):
    llm = LLM(str(folder), window_size=24, dtype="float32", kv_cache_memory_bytes=4 << 20)
    params = SamplingParams(
        temperature=0, max_tokens=3, prompt_logprobs=2, logprobs=1, ignore_eos=True
    )
    output = llm.generate([PROMPTS[1]], params, use_tqdm=False)[0]
    assert output.prompt_logprobs[0] is None
    assert [e.token_id for e in output.prompt_logprobs[1:]] == PROMPTS[1][1:]
    assert all(len(e.top) == 2 for e in output.prompt_logprobs[1:])
    scores = llm.score(PROMPTS[1], use_tqdm=False)
    assert scores[1:] == pytest.approx([e.logprob for e in output.prompt_logprobs[1:]], abs=1e-5)
    assert len(output.outputs[0].logprobs) == 3


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", None, "prompt must not be empty"),
        ([], None, "prompt must not be empty"),
        ([1, 97], None, r"prompt token ids must be in \[0, 97\), got 97"),
        ([-1], None, r"in \[0, 97\), got -1"),
        ([1.5], None, "prompt token ids must be ints, got 1.5"),
        (["a"], None, "prompt token ids must be ints, got 'a'"),
        (7, None, "prompt must be text or a list of token ids, got 7"),
        (None, None, "prompt must be text or a list of token ids, got None"),
        (b"ab", None, "prompt must be text or a list of token ids, got b'ab'"),
        ("\ud800", None, "prompt is not valid text"),
        ("a", {"temperature": 1}, "params must be SamplingParams"),
        ("a", SamplingParams(stop_token_ids=[97]), "stop_token_ids must be below 97, got 97"),
    ],
)
def test_bad_requests_are_refused_and_the_others_go_on(make_engine, prompt, params, message):
    engine = make_engine()
    expected = alone(engine, PROMPTS[0], GREEDY)
    engine.add_request("good", PROMPTS[0], GREEDY)
    with pytest.raises(ValueError, match=message):
        engine.add_request("bad", prompt, params)
    assert tokens(drain(engine)["good"]) == expected
    assert engine.stats().num_used_blocks == 0


def test_request_ids_are_unique_while_unfinished(make_engine):
    engine = make_engine()
    engine.add_request("a", "x", GREEDY)
    with pytest.raises(ValueError, match="request_id 'a' is in use"):
        engine.add_request("a", "x", GREEDY)
    with pytest.raises(ValueError, match="request_id must be a string"):
        engine.add_request(1, "x", GREEDY)


def test_an_aborted_id_starts_afresh(make_engine):
    engine = make_engine()
    expected = alone(engine, PROMPTS[2], GREEDY)
    with engine.open_stream() as stream:
        stream.append([5, 6, 7])
        engine.add_request("a", PROMPTS[0], GREEDY)
        list(stream.generate(SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)))
    engine.abort_request("a")  # what the stream's steps computed for it is dropped as well
    engine.add_request("a", PROMPTS[2], GREEDY)
    assert tokens(drain(engine)["a"]) == expected


def test_priority_is_an_int(make_engine):
    engine = make_engine()
    with pytest.raises(ValueError, match="priority must be an int, got None"):
        engine.add_request("a", "x", priority=None)
    engine.add_request("b", "x", GREEDY)
    assert len(tokens(drain(engine)["b"])) == 12


def test_prompts_may_be_arrays(folder):
    llm = LLM(str(folder), window_size=24, dtype="float32", kv_cache_memory_bytes=4 << 20)
    expected = llm.generate([5, 6, 7], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    for prompts in (torch.tensor([5, 6, 7]), [np.array([5, 6, 7])], np.array([[5, 6, 7]])):
        (output,) = llm.generate(prompts, GREEDY, use_tqdm=False)
        assert output.outputs[0].token_ids == expected


def test_generate_leaves_other_users_of_the_engine_alone(folder):
    llm = LLM(str(folder), window_size=24, dtype="float32", kv_cache_memory_bytes=4 << 20)
    expected = llm.generate(["abc", "xyz"], GREEDY, use_tqdm=False)
    llm.add_request("mine", "xyz", GREEDY)
    stream = llm.open_stream()
    stream.append("endless")
    endless = stream.generate(SamplingParams(max_tokens=None, ignore_eos=True))
    next(endless)
    (output,) = llm.generate("abc", GREEDY, use_tqdm=False)
    assert output.outputs[0].token_ids == expected[0].outputs[0].token_ids
    stream.close()
    assert tokens(drain(llm)["mine"]) == expected[1].outputs[0].token_ids


def test_one_bad_prompt_runs_none(folder):
    llm = LLM(str(folder), window_size=24, dtype="float32", kv_cache_memory_bytes=4 << 20)
    with pytest.raises(ValueError, match="prompt must not be empty"):
        llm.generate(["good", ""], use_tqdm=False)
    assert not llm.has_unfinished_requests()
    with pytest.raises(ValueError, match="params must be one or one per prompt"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)


def test_text_needs_a_tokenizer_and_ids_do_not(make_engine, bare_folder):
    engine = make_engine(bare_folder)
    with pytest.raises(
        ValueError, match="has no tokenizer; pass token ids, or name one with tokenizer="
    ):
        engine.add_request("a", "text")
    with pytest.raises(ValueError, match="stop needs a tokenizer"):
        engine.add_request("a", [1, 2], SamplingParams(stop="x"))
    assert len(alone(engine, [1, 2, 3], GREEDY)) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_sink_tokens": -1}, "num_sink_tokens must be >= 0, got -1"),
        ({"kv_cache_memory_bytes": 10**15}, "kv_cache_memory_bytes must be at most"),
        ({"num_sink_tokens": 512}, "num_sink_tokens must be less than the model's trained length"),
        ({"num_sink_tokens": 1.5}, "num_sink_tokens must be an int, got 1.5"),
        ({"window_size": 0}, "window_size must be >= 1, got 0"),
        ({"window_size": -3}, "window_size must be >= 1"),
        ({"block_size": 0}, "block_size must be >= 1"),
        ({"max_num_seqs": 0}, "max_num_seqs must be >= 1"),
        ({"max_num_batched_tokens": 4}, "max_num_batched_tokens must be >= max_num_seqs"),
        ({"dtype": "int3"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int3'"),
        ({"kv_cache_dtype": "fp4"}, "kv_cache_dtype must be one of auto, int8, fp8, got 'fp4'"),
        ({"kv_cache_dtype": None}, "kv_cache_dtype must be one of auto, int8, fp8, got None"),
        ({"device": "tpu"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"device": "cpu", "dtype": "float16"}, "dtype='float16' needs a CUDA device"),
        ({"device": "cpu", "kv_cache_dtype": "fp8"}, "kv_cache_dtype='fp8' needs a CUDA device"),
        (
            {"device": "cpu", "attention_backend": "xformers"},
            "attention_backend='xformers' needs a CUDA device",
        ),
        ({"attention_backend": "flash"}, "attention_backend must be one of auto, native, xformers"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\], got 1.5"),
        ({"seed": "x"}, "seed must be an int"),
        (
            {"kv_cache_memory_bytes": 5000},
            "kv_cache_memory_bytes=5000 is too little for one stream.*need 20480 bytes; raise it",
        ),
        (
            {"kv_cache_memory_bytes": 5000, "kv_cache_dtype": "int8"},
            "kv_cache_memory_bytes=5000 is too little for one stream.*need 6400 bytes; raise it",
        ),
    ],
)
def test_bad_settings_name_the_field_and_the_remedy(make_engine, settings, message):
    with pytest.raises(ValueError, match=message):
        make_engine(**settings)


@pytest.mark.parametrize("model", ["", None, 7])
def test_model_must_be_a_name(model):
    with pytest.raises(ValueError, match="model must be"):
        EngineConfig(model=model)


def test_unknown_model_names_what_is_possible():
    with pytest.raises(ValueError, match="smollm2-135m-instruct"):
        LLM("no-such-model")


def test_nan_temperature():
    with pytest.raises(ValueError, match=r"temperature must be in \[0, inf\), got nan"):
        SamplingParams(temperature=math.nan)


def test_idle_streams_that_hold_every_block_make_room(make_engine):
    """A request that needs their blocks runs, and they go on as if nothing had happened."""
    answers = []
    for kv_cache_memory_bytes in (5 * 8 * 512, 4 << 20):
        engine = make_engine(kv_cache_memory_bytes=kv_cache_memory_bytes)
        stream = engine.open_stream()
        stream.append("x" * 60)
        answer = tokens(stream.generate(GREEDY))
        engine.add_request("waits", "abc", GREEDY)
        request = tokens(drain(engine)["waits"])
        was_parked = stream.stats().location != "cache"
        assert was_parked == (kv_cache_memory_bytes < 4 << 20)
        stream.append("and on")
        answers.append((answer, request, tokens(stream.generate(GREEDY))))
        assert stream.stats().location == "cache"
        stream.close()
        assert engine.stats().num_used_blocks == 0
    assert answers[0] == answers[1]
    assert len(answers[0][1]) == 12


def test_what_nobody_fetches_does_not_pile_up(make_engine):
    """A request waits once there are a thousand deltas of it that `step` has not returned."""
    engine = make_engine(max_num_seqs=2)
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    engine.add_request("unread", [5, 6, 7], endless)
    with engine.open_stream() as stream:
        stream.append([8, 9])
        list(stream.generate(SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True)))
    first = engine.step()
    assert {delta.request_id for delta in first} == {"unread"}
    assert 1024 <= len(tokens(first)) <= 1026
    assert len(tokens(engine.step())) == 1  # and goes on once they are fetched
    engine.abort_request("unread")


def test_a_step_within_a_step_is_refused(make_engine, monkeypatch):
    """It would wait for itself."""
    engine = make_engine()
    engine.add_request("a", [5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True))
    submit = engine.core.executor.submit

    def meanwhile(output):
        with pytest.raises(RuntimeError, match="within a step"):
            engine.step()
        return submit(output)

    monkeypatch.setattr(engine.core.executor, "submit", meanwhile)
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
    assert sum(len(delta.delta_token_ids) for delta in deltas) == 3


@pytest.mark.parametrize("wrong", [5, None, [], {"role": "user", "content": "hi"}, ["hi"]])
def test_what_is_no_conversation(make_engine, wrong):
    stream = make_engine().open_stream()
    with pytest.raises(ValueError, match="messages must be text or a list of messages"):
        stream.chat(wrong)
    assert stream.position == 0
