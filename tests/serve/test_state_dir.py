"""Streams, responses and conversations of a service that ends and starts again, and of several
keys."""

from __future__ import annotations

import signal

import pytest
import requests

from paged_stream import SamplingParams
from tests.serve.services import SAMPLING, Client, serve_engine, serve_pool

PARAMS = SamplingParams(**SAMPLING)


@pytest.fixture
def state_dir(tmp_path):
    return tmp_path / "state"


def text_of(deltas):
    return "".join(delta.delta_text for delta in deltas)


def opened(client, prompt):
    stream_id = client.post("/v1/streams", json={}).json()["id"]
    client.post(f"/v1/streams/{stream_id}/append", json={"prompt": prompt})
    return stream_id


def generated(client, stream_id):
    return client.post(f"/v1/streams/{stream_id}/generate", json=SAMPLING).json()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_streams_outlive_a_service(folder, llm, state_dir, end):
    with serve_engine(folder, end, state_dir=state_dir, drain_seconds=0.01) as base:
        client = Client(base)
        quiet, busy = opened(client, "once upon a time"), opened(client, "a log:")
        first = generated(client, quiet)["text"]
        endless = {"background": True, "max_tokens": 10**9, "ignore_eos": True, "temperature": 0}
        client.post(f"/v1/streams/{busy}/generate", json=endless)
        followed = requests.get(f"{base}/v1/streams/{busy}/events", stream=True)
        next(followed.iter_lines())
    followed.close()
    with serve_engine(folder, state_dir=state_dir) as base, llm.open_stream() as twin:
        client = Client(base)
        assert {each["id"] for each in client.get("/v1/streams").json()["data"]} == {quiet, busy}
        answer = generated(client, quiet)
        twin.append("once upon a time")
        assert [first, answer["text"]] == [text_of(twin.generate(PARAMS)) for _ in range(2)]
        assert answer["position"] == twin.position
        assert client.get(f"/v1/streams/{busy}").json()["num_tokens"] > len("a log:")
        assert client.delete(f"/v1/streams/{busy}").status_code == 200
        assert client.delete(f"/v1/streams/{quiet}").status_code == 200
    assert not [*state_dir.rglob("*.stream"), *state_dir.rglob("*.json")]


@pytest.mark.ray
def test_streams_outlive_a_pool(ray, folder, llm, state_dir):
    with serve_pool(folder, state_dir=state_dir) as base:
        client = Client(base)
        stream_id = opened(client, "once upon a time")
        texts = [generated(client, stream_id)["text"]]
    with serve_pool(folder, state_dir=state_dir) as base:
        texts.append(generated(Client(base), stream_id)["text"])
    with llm.open_stream() as twin:
        twin.append("once upon a time")
        assert texts == [text_of(twin.generate(PARAMS)) for _ in range(2)]


def test_after_a_crash_nobody_goes_on_from_an_old_state(folder, llm, state_dir):
    with serve_engine(folder, signal.SIGTERM, state_dir=state_dir) as base:
        ids = [opened(Client(base), "once upon a time") for _ in range(2)]
    with serve_engine(folder, signal.SIGKILL, state_dir=state_dir) as base:
        client = Client(base)
        generated(client, ids[0])
        saving = {"name": "evening"}
        assert client.post(f"/v1/streams/{ids[0]}/save", json=saving).status_code == 200
        generated(client, ids[0])
    with serve_engine(folder, state_dir=state_dir) as base, llm.open_stream() as twin:
        client = Client(base)
        twin.append("once upon a time")
        texts = [text_of(twin.generate(PARAMS)) for _ in range(2)]
        assert client.get(f"/v1/streams/{ids[0]}").status_code == 404
        assert generated(client, ids[1])["text"] == texts[0]
        assert client.get("/v1/streams/saved").json()["data"] == [{"name": "evening"}]
        restored = client.post("/v1/streams/saved/evening/restore").json()["id"]
        assert generated(client, restored)["text"] == texts[1]


def test_responses_and_conversations_outlive_a_service(folder, llm, state_dir):
    openai = pytest.importorskip("openai")
    asking = {"temperature": 0.0, "max_output_tokens": 12, "extra_body": {"ignore_eos": True}}

    def client_of(base):
        return openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)

    with serve_engine(folder, signal.SIGTERM, state_dir=state_dir) as base, client_of(base) as ai:
        asking["model"] = ai.models.list().data[0].id
        first = ai.responses.create(input="who?", **asking)
        conversation = ai.conversations.create(metadata={"a": "b"})
        ai.responses.create(input="who?", conversation=conversation.id, **asking)
    with serve_engine(folder, state_dir=state_dir) as base, client_of(base) as ai:
        assert ai.responses.retrieve(first.id) == first
        assert ai.conversations.retrieve(conversation.id) == conversation
        answers = [
            ai.responses.create(input="why?", previous_response_id=first.id, **asking),
            ai.responses.create(input="why?", conversation=conversation.id, **asking),
        ]
        assert len(list(ai.conversations.items.list(conversation.id))) == 4
    with llm.open_stream() as twin:
        list(twin.chat("who?", PARAMS))
        expected = text_of(twin.chat("why?", PARAMS))
    assert [answer.output_text for answer in answers] == [expected] * 2


def test_a_stream_of_another_key_is_not_there(folder, tmp_path, state_dir):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    with serve_engine(folder, api_key_file=keys, state_dir=state_dir) as base:
        headers = [{"authorization": f"Bearer {key}"} for key in ("first", "second")]

        def ask(method, path, which, **options):
            return requests.request(method, base + path, headers=headers[which], **options)

        name = ask("post", "/v1/streams", 0, json={}).json()["id"]
        said = {"input": "who?", "max_output_tokens": 5}
        response = ask("post", "/v1/responses", 0, json=said).json()["id"]
        conversation = ask("post", "/v1/conversations", 0, json={}).json()["id"]
        assert len(ask("get", "/v1/streams", 0).json()["data"]) == 2
        assert ask("get", "/v1/streams", 1).json()["data"] == []
        bodies = {"append": {"prompt": "a"}, "score": {"prompt": "a"}, "chat": {"messages": "a"}}
        bodies |= {"cut": {"start": 0, "end": 1}, "rewind": {"position": 0}}
        bodies |= {"save": {"name": "a"}, "{name}": {"metadata": {}}, "items": {"items": []}}
        for path, methods in ask("get", "/openapi.json", 0).json()["paths"].items():
            owned = response if path.startswith("/v1/responses") else conversation
            named = path.replace("{name}", owned).replace("{stream_id}", name)
            if named == path or path.startswith(("/v1/models", "/v1/streams/saved")):
                continue
            for method in methods:
                body = bodies.get(path.rpartition("/")[2], {}) if method == "post" else None
                assert ask(method, named, 1, json=body).status_code == 404, (method, path)
        for body in ({"previous_response_id": response}, {"conversation": conversation}):
            assert ask("post", "/v1/responses", 1, json=said | body).status_code == 404
            assert ask("post", "/v1/responses", 0, json=said | body).status_code == 200
        assert ask("delete", f"/v1/streams/{name}", 0).status_code == 200
