"""Wrong use is answered with what to write instead."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from paged_stream import LLM, AsyncLLMEngine, EngineConfig, LLMEngine, SamplingParams
from paged_stream.text.chat import Messages
from tests.conftest import save_tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SETTINGS = {"window_size": 24, "dtype": "float32", "kv_cache_memory_bytes": "4MiB"}
REFUSING = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant roles are supported!') }}{% endif %}"
    "{{ m['content'] }}</s>{% endfor %}"
)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **SETTINGS)


@pytest.mark.parametrize("kind", [LLMEngine, AsyncLLMEngine])
@pytest.mark.parametrize(
    ("arguments", "settings", "written"),
    [
        (("some-name",), {}, "EngineConfig(model='some-name')"),
        (("some-name",), {"window_size": 3}, "EngineConfig(model='some-name', window_size=3)"),
        ((), {"model": "some-name"}, "EngineConfig(model='some-name')"),
        ((), {}, "EngineConfig(model=...)"),
        ((EngineConfig(model="m"),), {"window_size": 3}, "EngineConfig(window_size=3)"),
    ],
)
def test_engines_take_a_config(kind, arguments, settings, written):
    with pytest.raises(TypeError, match=re.escape(f"write {kind.__name__}({written})")):
        kind(*arguments, **settings)


def test_llm_takes_the_fields_of_one():
    with pytest.raises(ValueError, match=r"got an EngineConfig: .*as in LLM\('m'\)"):
        LLM(EngineConfig(model="m"))
    with pytest.raises(TypeError, match=r"by its name, as in EngineConfig\(model="):
        EngineConfig("m")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_model_len", "window_size"),
        ("trust_remote_code", "never run"),
        ("enforce_eager", "cuda_graphs=False"),
        ("swap_space", "parking_memory_bytes"),
        ("torch_dtype", "write dtype"),
        ("temperature", "belongs to SamplingParams"),
        ("windowsize", "did you mean 'window_size'"),
        ("windowSize", "did you mean 'window_size'"),
        ("num_sinks_token", "did you mean 'num_sink_tokens'"),
        ("kv_cache_memory", "did you mean 'kv_cache_memory_bytes'"),
        ("xyz", "it has attention_backend, block_size"),
    ],
)
def test_settings_that_there_are_not(name, hint):
    with pytest.raises(TypeError, match=f"EngineConfig has no setting '{name}'.*{hint}"):
        LLM("m", **{name: 1})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_new_tokens", "write max_tokens"),
        ("best_of", "n gives several"),
        ("use_beam_search", "no beam search"),
        ("do_sample", "temperature=0 is greedy"),
        ("window_size", "belongs to EngineConfig"),
        ("temprature", "did you mean 'temperature'"),
        ("topp", "did you mean 'top_p'"),
        ("xyz", "it has allowed_token_ids, bad_words"),
        ("logits_processor", "write logits_processors"),
        ("suppress_tokens", "write logit_bias"),
    ],
)
def test_parameters_that_there_are_not(name, hint):
    with pytest.raises(TypeError, match=f"SamplingParams has no setting '{name}'.*{hint}"):
        SamplingParams(**{name: 1})


def test_parameters_have_names():
    with pytest.raises(TypeError, match=r"as in SamplingParams\(temperature=0.8\), got 0.3"):
        SamplingParams(0.3)


@pytest.mark.parametrize(
    ("params", "hint"),
    [
        ({"max_tokens": 5}, r"write SamplingParams\(max_tokens=5\)"),
        ({}, r"write SamplingParams\(\)"),
        ({"max tokens": 5}, r"pass SamplingParams\(...\)"),
        (5, r"pass SamplingParams\(...\)"),
        (False, r"pass SamplingParams\(...\)"),
    ],
)
def test_what_are_no_parameters(llm, params, hint):
    message = "params must be SamplingParams, got .*; " + hint
    with pytest.raises(ValueError, match=message):
        llm.generate("a", params)
    with pytest.raises(ValueError, match=message):
        llm.generate(["a", "b"], [GREEDY, params])
    with pytest.raises(ValueError, match=message):
        llm.chat([{"role": "user", "content": "a"}], params)
    with pytest.raises(ValueError, match=message):
        llm.add_request("r", "a", params)
    with llm.open_stream() as stream:
        stream.append("a")
        with pytest.raises(ValueError, match=message):
            stream.generate(params)
        with pytest.raises(ValueError, match=message):
            stream.chat("a", params)
    assert not llm.has_unfinished_requests()


def test_the_prompt_that_is_wrong_is_named(llm):
    with pytest.raises(ValueError, match=r"^prompts\[2\]: prompt must not be empty"):
        llm.generate(["a", "b", ""])
    with pytest.raises(ValueError, match=r"^prompts\[1\]: prompt token ids must be in"):
        llm.generate([[1], [10**6]])
    with pytest.raises(ValueError, match="^prompt must not be empty"):
        llm.generate("")


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ({"prompt": "a", "multi_modal_data": {}}, "'prompt_token_ids', got 'multi_modal_data'"),
        ({"prompt": [1]}, "'prompt' must be text, got .1.; token ids go under 'prompt_token_ids'"),
        ({"prompt_token_ids": "a"}, "'prompt_token_ids' must be token ids, got 'a'"),
        ({"prompt_token_ids": {}}, "prompt must be text or a list of token ids, got {}"),
        ({"prompt": None}, "must have 'prompt' or 'prompt_token_ids', got {'prompt': None}"),
        ({"prompt": ""}, "prompt must not be empty"),
        (b"a", "decode it first"),
        (3.5, "prompt must be text or a list of token ids, got 3.5"),
        ([True, False], "prompt token ids must be ints, got True"),
        (np.array([1.0]), "prompt token ids must be ints, got 1.0"),
    ],
)
def test_what_is_no_prompt(llm, prompt, hint):
    with pytest.raises(ValueError, match=hint):
        llm.generate(prompt)


@pytest.mark.parametrize(
    "wrap", [tuple, np.array, torch.tensor, lambda ids: list(torch.tensor(ids)), np.int32]
)
def test_arrays_of_token_ids(llm, wrap):
    ids = [5, 6, 7]
    [expected] = llm.generate([ids], GREEDY, use_tqdm=False)
    [output] = llm.generate(wrap(ids), GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == ids
    assert output.outputs[0].token_ids == expected.outputs[0].token_ids
    first, second = llm.generate(np.array([ids, ids[::-1]]), GREEDY, use_tqdm=False)
    assert first.prompt_token_ids == ids and second.prompt_token_ids == ids[::-1]


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ({"role": "user", "content": None}, "content must be text, or parts of text, got None"),
        ({"role": "user", "content": 3}, "content must be text, or parts of text, got 3"),
        ({"role": None, "content": "a"}, "pass dicts with 'role' and 'content'"),
    ],
)
def test_messages_that_are_wrong(llm, message, hint):
    right: Messages = [{"role": "user", "content": "a"}]
    with pytest.raises(ValueError, match=f"^messages: .*{hint}"):
        llm.chat([message])
    with pytest.raises(ValueError, match=rf"^messages\[1\]: (?!messages).*{hint}"):
        llm.chat([right, [message]])
    with llm.open_stream() as stream, pytest.raises(ValueError, match=hint):
        stream.chat([message])


def test_a_text_is_no_conversation(llm):
    with pytest.raises(ValueError, match=r"write \[{'role': 'user', 'content': 'hello'}\]"):
        llm.chat("hello")


def test_a_role_that_the_template_refuses(tmp_path, bare_folder):
    import shutil

    folder = shutil.copytree(bare_folder, tmp_path / "model")
    save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(REFUSING)
    llm = LLM(str(folder), **SETTINGS)
    with pytest.raises(ValueError, match="only user and assistant roles") as error:
        llm.chat([{"role": "system", "content": "a"}])
    assert type(error.value.__cause__).__name__ == "TemplateError"


def test_outputs_can_be_read(llm):
    [output] = llm.generate("a" * 500, SamplingParams(n=2, max_tokens=3, seed=0), use_tqdm=False)
    text = repr(output)
    assert "prompt_token_ids=<500>" in text and text.count("CompletionOutput(index=") == 2
    assert "token_ids=<3>" in text and "finish_reason='length'" in text and len(text) < 600
