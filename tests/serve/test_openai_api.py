"""OpenAI's API as clients use it, next to an engine here that is asked for the same."""

from __future__ import annotations

import base64
import json
from array import array

import pytest

from paged_stream import SamplingParams
from paged_stream.version import __version__
from tests.serve.services import SAMPLING, events

GREEDY = {"temperature": 0.0, "ignore_eos": True}
WHO = [{"role": "user", "content": "who?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/A"}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"A": {"enum": ["x", "yz"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in "fg"
]


def complete(client, path="/v1/completions", **body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chat(client, **body):
    return complete(client, "/v1/chat/completions", **({"messages": WHO} | body))


def texts_of(llm, prompts, **params):
    outputs = llm.generate(prompts, SamplingParams(**params), use_tqdm=False)
    return [output.text for request in outputs for output in request.outputs]


def test_lists_of_prompts(client, llm):
    prompts = ["once", "upon", "a time"]
    ids = [llm.encode(prompt) for prompt in prompts]
    params = GREEDY | {"max_tokens": 6, "n": 2, "temperature": 1.0, "seed": 3}
    expected = texts_of(llm, prompts, **params)
    for prompt in (prompts, ids):
        answer = complete(client, prompt=prompt, **params)
        assert [choice["index"] for choice in answer["choices"]] == list(range(6))
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
        assert answer["usage"]["completion_tokens"] == 36
    parts = events(client, "/v1/completions", {"prompt": prompts} | params)
    told = [""] * 6
    for choice in (choice for part in parts for choice in part["choices"]):
        told[choice["index"]] += choice["text"]
    assert told == expected
    one = complete(client, prompt=ids[0], **params)
    assert [choice["text"] for choice in one["choices"]] == expected[:2]


def test_echo_and_log_probabilities(client, llm):
    prompt = "once upon a time there was a long prompt"
    params = SamplingParams(**GREEDY, max_tokens=4, logprobs=2, prompt_logprobs=2)
    [expected] = llm.generate(prompt, params, use_tqdm=False)
    body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 4} | GREEDY
    [choice] = complete(client, **body)["choices"]
    assert choice["text"] == prompt + expected.outputs[0].text
    told = choice["logprobs"]
    assert told["tokens"] == list(choice["text"])
    assert told["text_offset"] == list(range(len(choice["text"])))
    entries = [*expected.prompt_logprobs[1:], *expected.outputs[0].logprobs]
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx([entry.logprob for entry in entries])
    for top, entry in zip(told["top_logprobs"][1:], entries, strict=True):
        best = sorted({*entry.top.values(), entry.logprob}, reverse=True)
        assert sorted(top.values(), reverse=True) == pytest.approx(best)
    parts = events(client, "/v1/completions", body)
    streamed = [part["choices"][0] for part in parts]
    assert "".join(part["text"] for part in streamed) == choice["text"]
    assert sum((part["logprobs"]["tokens"] for part in streamed), []) == told["tokens"]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_what_harnesses_ask_for_scores(client, llm, max_tokens):
    """Log-probabilities of a prompt as ids, and of no more than one token behind it."""
    prompts = [llm.encode("once upon"), llm.encode("a")]
    body = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": max_tokens} | GREEDY
    answer = complete(client, **body)
    for choice, ids, scores in zip(answer["choices"], prompts, llm.score(prompts), strict=True):
        told = choice["logprobs"]["token_logprobs"]
        assert len(told) == len(ids) + max_tokens == len(choice["logprobs"]["tokens"])
        assert told[0] is None and told[1 : len(ids)] == pytest.approx(scores[1:])
    assert answer["usage"]["completion_tokens"] == 2 * max_tokens


def test_log_probabilities_of_a_chat(client, llm):
    params = SamplingParams(**GREEDY, max_tokens=5, logprobs=3)
    expected = llm.chat(WHO, params, use_tqdm=False)[0].outputs[0]
    body = {"logprobs": True, "top_logprobs": 3, "max_tokens": 5} | GREEDY
    [choice] = chat(client, **body)["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == expected.text
    assert bytes(sum((entry["bytes"] for entry in content), [])).decode() == expected.text
    logprobs = [entry.logprob for entry in expected.logprobs]
    assert [entry["logprob"] for entry in content] == pytest.approx(logprobs)
    for told, entry in zip(content, expected.logprobs, strict=True):
        best = sorted(entry.top.values(), reverse=True)
        assert [each["logprob"] for each in told["top_logprobs"]] == pytest.approx(best)
    parts = events(client, "/v1/chat/completions", {"messages": WHO} | body)
    told = [
        e for part in parts for e in (part["choices"][0]["logprobs"] or {"content": ()})["content"]
    ]
    assert [entry["token"] for entry in told] == [entry["token"] for entry in content]
    [choice] = chat(client, **GREEDY, max_tokens=1, logprobs=True)["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_bias_for_a_token(client, llm):
    token_id = llm.encode("q")[0]
    answer = complete(client, prompt="a", logit_bias={str(token_id): 100}, max_tokens=3, **GREEDY)
    assert answer["choices"][0]["text"] == "qqq"


def test_fields_without_effect(client):
    fields = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    fields |= {"prompt_cache_key": "k", "safety_identifier": "s", "logprobs": False, "stream": None}
    body = {"max_tokens": 3} | GREEDY
    assert chat(client, **body, **fields)["choices"] == chat(client, **body)["choices"]
    answer = complete(client, prompt="a", **body, **fields)
    assert answer["choices"] == complete(client, prompt="a", **body)["choices"]


def test_usage_while_an_answer_comes(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": WHO, "stream_options": options, "max_tokens": 3} | GREEDY
    *parts, last = events(client, "/v1/chat/completions", body)
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts) and counts[-1] == last["usage"]["completion_tokens"] == 3


def test_token_ids_if_they_are_wanted(client, llm):
    answer = complete(client, prompt="abc", return_token_ids=True, max_tokens=4, **GREEDY)
    assert answer["prompt_token_ids"] == llm.encode("abc")
    params = SamplingParams(max_tokens=4, **GREEDY)
    [expected] = llm.generate("abc", params, use_tqdm=False)
    assert answer["choices"][0]["token_ids"] == expected.outputs[0].token_ids


@pytest.mark.parametrize("is_streamed", [False, True])
def test_forced_calls(client, is_streamed):
    pytest.importorskip("llguidance")

    def calls_of(tool_choice, **more):
        body = {"messages": WHO, "tools": TOOLS, "tool_choice": tool_choice, "seed": 1} | more
        if not is_streamed:
            [choice] = chat(client, **body)["choices"]
            assert choice["message"]["content"] is None
            return choice["message"]["tool_calls"], choice["finish_reason"]
        parts = events(client, "/v1/chat/completions", body)
        choices = [part["choices"][0] for part in parts]
        calls = []
        for told in (call for each in choices for call in each["delta"].get("tool_calls", ())):
            if told["index"] == len(calls):
                calls.append(told)
            else:
                calls[-1]["function"]["arguments"] += told["function"]["arguments"]
        return calls, choices[-1]["finish_reason"]

    [call], reason = calls_of({"type": "function", "function": {"name": "g"}})
    assert reason == "stop" and call["function"]["name"] == "g" and call["type"] == "function"
    assert json.loads(call["function"]["arguments"])["a"] in ("x", "yz")
    [call], reason = calls_of("required", parallel_tool_calls=False)
    assert reason == "tool_calls" and call["function"]["name"] in "fg" and call["id"]
    assert json.loads(call["function"]["arguments"])["a"] in ("x", "yz")


def test_a_turn_with_a_call_goes_on(client, llm):
    """As clients send it back: no content beside the call, and its arguments as text."""
    template = (
        "{% for m in messages %}{{ m.role }}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments.a }}{% endfor %};{% endfor %}"
    )
    function = {"name": "f", "arguments": '{"a": "x"}'}
    call = {"id": "c1", "type": "function", "function": function}
    messages = [
        {"role": "developer", "content": "be"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ]
    body = {"messages": messages, "chat_template": template}
    told = complete(client, "/tokenize", **body)
    assert complete(client, "/detokenize", tokens=told["tokens"])["prompt"] == (
        "systembe;assistantx;tool5;"
    )
    assert chat(client, **body, max_tokens=2, **GREEDY)["usage"]["prompt_tokens"] == told["count"]


def test_tokens_and_text(client, llm, folder):
    told = complete(client, "/tokenize", prompt="a b", return_token_strs=True, model=str(folder))
    ids = llm.encode("a b")
    assert told == {"count": 3, "tokens": ids, "token_strs": ["a", " ", "b"]}
    assert complete(client, "/detokenize", tokens=ids) == {"prompt": "a b"}
    assert complete(client, "/detokenize", tokens=[]) == {"prompt": ""}
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == "</s>" and "add_generation_prompt" in info["chat_template"]
    assert client.get("/version").json() == {"version": __version__}


def test_embeddings(client, llm, folder):
    texts = ["once", "a text that is longer than the window is"]
    ids = [llm.encode(text) for text in texts]
    expected = [output.outputs.embedding for output in llm.embed(texts, use_tqdm=False)]
    for sent in (texts, ids):
        answer = complete(client, "/v1/embeddings", input=sent, model=str(folder), user="me")
        assert answer["object"] == "list" and answer["model"] == str(folder)
        assert [each["index"] for each in answer["data"]] == [0, 1]
        for each, vector in zip(answer["data"], expected, strict=True):
            assert each["object"] == "embedding"
            assert each["embedding"] == pytest.approx(vector, abs=1e-5)
        count = sum(map(len, ids))
        assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    for sent in (texts[1], ids[1]):
        [plain] = complete(client, "/v1/embeddings", input=sent)["data"]
        packed = {"input": sent, "encoding_format": "base64"}
        [packed] = complete(client, "/v1/embeddings", **packed)["data"]
        vector = array("f", base64.b64decode(packed["embedding"])).tolist()
        assert vector == pytest.approx(plain["embedding"], abs=1e-5)


def test_models_by_name(client, folder):
    model = client.get(f"/v1/models/{folder}").json()
    assert client.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert model["id"] == str(folder)
    answer = chat(client, model=str(folder), max_tokens=1)
    assert answer["model"] == str(folder)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("get", "/v1/models/other", None, 404, {"code": "model_not_found", "param": "model"}),
        ("post", "/v1/completions", {"prompt": "a", "model": "other"}, 404, {"param": "model"}),
        ("post", "/v1/chat/completions", {"messages": WHO, "model": "o"}, 404, {"param": "model"}),
        ("post", "/tokenize", {"prompt": "a", "model": "other"}, 404, {"param": "model"}),
        ("get", "/v1/nothing", None, 404, {}),
        ("get", "/v1/completions", None, 405, {}),
        ("post", "/v1/completions", {"prompt": "a", "nonsense": 1}, 400, {"param": "nonsense"}),
        ("post", "/v1/completions", {"prompt": {}}, 400, {}),
        ("post", "/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, {}),
        ("post", "/v1/completions", {"prompt": "\ud800"}, 400, {}),
        ("post", "/v1/completions", {"prompt": "a", "model": "\ud800"}, 404, {"param": "model"}),
        ("post", "/v1/completions", {"prompt": ["a", ""]}, 400, {}),
        ("post", "/v1/chat/completions", {"messages": WHO, "top_logprobs": 2}, 400, {}),
        ("post", "/v1/chat/completions", {"messages": WHO, "tool_choice": "required"}, 400, {}),
        ("post", "/v1/chat/completions", {"messages": WHO, "tools": [{"a": 1}]}, 400, {}),
        ("post", "/v1/embeddings", {"input": "a", "model": "other"}, 404, {"param": "model"}),
        ("post", "/v1/embeddings", {"input": "a", "dimensions": 2}, 400, {}),
        ("post", "/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, {}),
        ("post", "/v1/embeddings", {"input": ["a", ""]}, 400, {}),
        ("post", "/v1/embeddings", {"input": []}, 400, {}),
        ("post", "/v1/embeddings", {"input": [[1], [1, 1000]]}, 400, {}),
        ("post", "/tokenize", {}, 400, {}),
        ("post", "/detokenize", {"tokens": [100_000]}, 400, {}),
    ],
)
def test_errors_have_the_shape_of_openai(client, method, path, body, status, error):
    response = client.get(path) if method == "get" else client.post(path, json=body)
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    assert told["type"] == "invalid_request_error" and told["message"]
    assert told.items() >= error.items()
    if status == 405:
        assert response.headers["allow"] == "POST"


def test_the_wrong_one_of_many_prompts_is_named(client):
    response = client.post("/v1/completions", json={"prompt": ["a", [1, 1000]], **SAMPLING})
    assert response.status_code == 400
    response = client.post("/v1/completions", json={"prompt": [[1], [1, 1000]], **SAMPLING})
    assert response.status_code == 400 and "prompts[1]" in response.json()["error"]["message"]
