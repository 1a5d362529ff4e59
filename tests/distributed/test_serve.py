"""The Serve application over HTTP, next to one engine in this process."""

from __future__ import annotations

import json
import socket

import pytest
import requests

from paged_stream import LLM, SamplingParams

pytestmark = pytest.mark.ray

SETTINGS = {
    "window_size": 24,
    "block_size": 8,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 32,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}
SAMPLING = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


class Client:
    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path):
        return requests.get(self.base + path, timeout=60)

    def post(self, path, json=None, **options):
        return requests.post(self.base + path, json=json, timeout=60, **options)

    def delete(self, path):
        return requests.delete(self.base + path, timeout=60)


@pytest.fixture(scope="module")
def client(ray, folder):
    from ray import serve

    from paged_stream.distributed.serve import build_app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(str(folder), num_replicas=2, **SETTINGS), name="paged_stream")
    yield Client(f"http://127.0.0.1:{port}")
    serve.shutdown()


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **SETTINGS)


def events(client, path, body):
    """What comes, event by event, before [DONE]."""
    with client.post(path, json=body | {"stream": True}, stream=True) as response:
        assert response.status_code == 200
        lines = [line.decode().removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_completions(client, llm):
    params = SamplingParams(**SAMPLING)
    expected = llm.generate("once upon", params, use_tqdm=False)[0].outputs[0].text
    body = {"model": "any", "prompt": "once upon"} | SAMPLING
    answer = client.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": expected, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    parts = [event["choices"][0] for event in events(client, "/v1/completions", body)]
    assert "".join(part["text"] for part in parts) == expected
    assert parts[-1]["finish_reason"] == "length"


def test_chat_completions(client, llm):
    messages = [{"role": "user", "content": "who?"}]
    params = SamplingParams(**SAMPLING)
    expected = llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text
    body = {"messages": messages} | SAMPLING
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected}
    parts = events(client, "/v1/chat/completions", body)
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == expected
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_streams(client, llm):
    opened = client.post("/v1/streams", json={}).json()
    path = f"/v1/streams/{opened['id']}"
    with llm.engine.open_stream() as stream:
        stream.append("a beginning")
        expected = [
            "".join(d.delta_text for d in stream.generate(SamplingParams(**SAMPLING)))
            for _ in range(3)
        ]
        position = stream.position
    body = {"prompt": "a beginning"}
    assert client.post(f"{path}/append", json=body).json()["position"] == 11
    answer = client.post(f"{path}/generate", json=SAMPLING).json()
    assert (answer["text"], answer["position"]) == (expected[0], 23)
    fork = client.post(f"{path}/fork").json()
    parts = events(client, f"{path}/generate", SAMPLING)
    assert "".join(part["text"] for part in parts) == expected[1]
    for turn in (1, 2):
        answer = client.post(f"/v1/streams/{fork['id']}/generate", json=SAMPLING).json()
        assert answer["text"] == expected[turn]
    assert answer["position"] == position
    assert client.get(path).json()["position"] == position - 12
    assert client.get("/health").json()["streams"] == 2
    for stream_id in (opened["id"], fork["id"]):
        assert client.delete(f"/v1/streams/{stream_id}").json()["deleted"]
    assert client.get("/health").json()["streams"] == 0


def test_chat_in_a_stream(client, llm):
    pin = [{"role": "system", "content": "short"}]
    stream_id = client.post("/v1/streams", json={"pin": pin}).json()["id"]
    with llm.engine.open_stream(pin=pin) as stream:
        for question in ("who?", "why?"):
            deltas = stream.chat(question, SamplingParams(**SAMPLING))
            body = {"messages": [{"role": "user", "content": question}]} | SAMPLING
            answer = client.post(f"/v1/streams/{stream_id}/generate", json=body).json()
            assert answer["text"] == "".join(delta.delta_text for delta in deltas)
    client.delete(f"/v1/streams/{stream_id}")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "temperature must be"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt must not be empty"),
        ("/v1/completions", {"prompt": [1000], "stream": True}, 400, "must be in"),
        ("/v1/completions", {"prompt": "a", "best_of": 2}, 422, "best_of"),
        ("/v1/chat/completions", {"messages": "who?"}, 422, "messages"),
        ("/v1/streams", {"window_size": 0}, 400, "window_size must be"),
        ("/v1/streams/nothing/append", {"prompt": "a"}, 404, "there is no stream 'nothing'"),
        ("/v1/streams/nothing/generate", {}, 404, "there is no stream 'nothing'"),
    ],
)
def test_what_is_wrong_is_said(client, path, body, status, message):
    response = client.post(path, json=body)
    assert (response.status_code, message in response.text) == (status, True), response.text


def test_a_stream_says_what_is_wrong(client):
    stream_id = client.post("/v1/streams", json={}).json()["id"]
    path = f"/v1/streams/{stream_id}"
    for body, message in [
        ({"stream": True}, "the stream is empty"),
        ({"prompt": "a", "n": 2}, "n must be 1 for a stream"),
        ({"prompt": "a", "messages": []}, "pass one of them"),
    ]:
        response = client.post(f"{path}/generate", json=body)
        assert response.status_code == 400 and message in response.text
    assert client.get(path).json()["position"] == 0
    assert client.delete(path).status_code == 200
    assert client.delete(path).status_code == 404
