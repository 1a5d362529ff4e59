"""Requests that bring more tokens than a service takes are refused, by whichever way they come."""

from __future__ import annotations

import json

import pytest

from tests.serve.services import Client, serve_engine

MOST = 12
REFUSED = f"the prompts of a request must have at most {MOST} tokens together (max_prompt_tokens)"
LONG, HALF, SHORT = "a" * 13, "a" * 7, "a" * 12
LAST = {"max_tokens": 1, "temperature": 0.0}


@pytest.fixture(scope="module")
def client(folder):
    with serve_engine(folder, max_prompt_tokens=MOST) as base:
        yield Client(base)


@pytest.fixture
def stream(client):
    stream_id = client.post("/v1/streams", json={}).json()["id"]
    yield f"/v1/streams/{stream_id}"
    client.delete(f"/v1/streams/{stream_id}")


def said(text):
    return [{"role": "user", "content": text}]


PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("path", "long", "short"),
    [
        ("/v1/completions", {"prompt": LONG}, {"prompt": SHORT}),
        ("/v1/completions", {"prompt": [5] * 13}, {"prompt": [5] * 12}),
        ("/v1/completions", {"prompt": [HALF, HALF]}, {"prompt": [HALF, "aaaaa"]}),
        (
            "/v1/chat/completions",
            {"messages": said(LONG), "chat_template": PLAIN},
            {"messages": said(SHORT), "chat_template": PLAIN},
        ),
        ("/v1/responses", {"input": LONG}, {"input": "a" * 5}),
        ("/v1/responses", {"input": "a", "instructions": LONG}, {"input": "a"}),
        ("/v1/embeddings", {"input": [HALF, HALF]}, {"input": [HALF, "aaaaa"]}),
        ("/v1/streams", {"pin": LONG}, {"pin": SHORT}),
        ("/v1/streams", {"pin": said(LONG)}, {"pin": said("a")}),
        ("append", {"prompt": LONG}, {"prompt": SHORT}),
        ("append", {"prompt": [5] * 13}, {"prompt": [5] * 12}),
        ("score", {"prompt": LONG}, {"prompt": SHORT}),
        ("generate", {"prompt": LONG}, {"prompt": SHORT}),
        ("chat", {"messages": LONG}, {"messages": SHORT}),
        ("chat", {"messages": HALF, "tools": [{"a": HALF}]}, {"messages": HALF}),
        ("chat", {"messages": said(LONG)}, {"messages": said("a" * 8)}),
    ],
)
def test_what_is_too_long_is_refused(client, stream, path, long, short):
    path = path if path.startswith("/") else f"{stream}/{path}"
    given = {"max_output_tokens": 1} if path.endswith("responses") else {}
    given |= LAST if path.endswith(("completions", "generate", "chat")) else {}
    response = client.post(path, json=long | given)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(REFUSED)
    assert client.get(stream).json()["position"] == 0
    response = client.post(path, json=short | given)
    assert response.status_code == 200, response.text


def test_a_socket_has_the_same_limit(client, stream):
    connect = pytest.importorskip("websockets.sync.client").connect
    with connect(client.base.replace("http", "ws") + f"{stream}/live") as socket:
        for prompt, kind in ((LONG, "refused"), (SHORT, "answer")):
            for command in ({"type": "append"}, {"type": "generate", **LAST}):
                socket.send(json.dumps(command | {"prompt": prompt}))
                while (told := json.loads(socket.recv())).get("to") != command["type"]:
                    pass
                assert told["type"] == kind
                if kind == "refused":
                    assert told["error"]["message"].startswith(REFUSED)
    assert client.get(stream).json()["position"] == 2 * len(SHORT) + 1


def test_by_default_a_prompt_may_be_as_long_as_it_is(folder):
    with serve_engine(folder) as base:
        answer = Client(base).post("/v1/embeddings", json={"input": [5] * 5000})
        assert answer.json()["usage"]["prompt_tokens"] == 5000
