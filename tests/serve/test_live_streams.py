"""Streams as resources: every method of the contract, events that a client can go on with after a
break, and a WebSocket. With one engine and with a pool, next to a stream of an engine here."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import requests

from paged_stream import SamplingParams
from paged_stream.engine.api import AsyncStreamApi
from tests.serve.services import SAMPLING

connect = pytest.importorskip("websockets.sync.client").connect

PARAMS = SamplingParams(**SAMPLING)
ENDLESS = {"ignore_eos": True, "temperature": 0.0, "max_tokens": 10**9}
TEXT = "abcdefghijklmnopqrstuvwxyz" * 2


@pytest.fixture
def stream(client):
    """The path of a new stream."""
    path = f"/v1/streams/{client.post('/v1/streams', json={}).json()['id']}"
    yield path
    client.delete(path)


def text_of(deltas):
    return "".join(delta.delta_text for delta in deltas)


def said(events):
    return "".join(event.get("text", "") for event in events)


@contextmanager
def following(client, path, **options):
    """The events of an answer, each of which has its id."""
    method = "post" if "json" in options else "get"
    with getattr(requests, method)(client.base + path, stream=True, **options) as response:
        assert response.status_code == 200, response.text
        yield events_in(response)


def events_in(response):
    event_id = None
    for line in response.iter_lines():
        if line.startswith(b"id: "):
            event_id = int(line[4:])
        elif line.startswith(b"data: {"):
            event = json.loads(line[6:])
            assert event["event_id"] == event_id
            yield event


def live(client, path):
    return connect(client.base.replace("http", "ws") + path, close_timeout=0)


def until(socket, kind):
    """Messages up to one of a kind."""
    messages = []
    while not messages or messages[-1]["type"] != kind:
        messages.append(json.loads(socket.recv()))
    return messages


def send(socket, kind, **arguments):
    socket.send(json.dumps({"type": kind} | arguments))


def test_every_method_of_the_contract_has_a_path(client):
    paths = client.get("/openapi.json").json()["paths"]
    found = {
        path.rpartition("/")[2] for path in paths if path.startswith("/v1/streams/{stream_id}")
    }
    elsewhere = {
        "close": ("/v1/streams/{stream_id}", "delete"),
        "stats": ("/v1/streams/{stream_id}", "get"),
        "position": ("/v1/streams/{stream_id}", "get"),
        "is_generating": ("/v1/streams/{stream_id}", "get"),
        "complete": ("/v1/streams/{stream_id}/generate", "post"),
        "save_bytes": ("/v1/streams/{stream_id}/save", "post"),
    }
    for name in (name for name in vars(AsyncStreamApi) if not name.startswith("_")):
        if name in elsewhere:
            path, method = elsewhere[name]
            assert method in paths[path]
        else:
            assert name in found, name


def test_edits_are_those_of_a_stream(client, llm, stream):
    with llm.open_stream() as twin:
        scores = client.post(f"{stream}/score", json={"prompt": TEXT}).json()
        assert scores["scores"] == pytest.approx(twin.score(TEXT), abs=1e-4)
        for name, arguments in (
            ("cut", {"start": 40, "end": 44}),
            ("rewind", {"position": 49}),
            ("append", {"prompt": "and on"}),
            ("park", {}),
        ):
            answer = client.post(f"{stream}/{name}", json=arguments).json()
            getattr(twin, name)(**arguments)
            assert answer["position"] == twin.position
        told, stats = client.get(stream).json(), twin.stats()
        assert told["location"] in ("host", "disk") and told["window_start"] == stats.window_start
        assert not told["is_generating"]
        answer = client.post(f"{stream}/generate", json=SAMPLING).json()
        assert answer["text"] == text_of(twin.generate(PARAMS))
        assert answer["position"] == twin.position
        runs = client.get(f"{stream}/visible").json()["runs"]
        assert [run["text"] for run in runs] == [run.text for run in twin.visible().runs]


def test_wrong_edits_change_nothing(client, stream):
    client.post(f"{stream}/append", json={"prompt": TEXT})
    before = client.get(stream).json()
    for name, arguments, message in (
        ("cut", {"start": 3, "end": 2}, "start and end must be a span"),
        ("cut", {"start": 3}, "end: Field required"),
        ("rewind", {"position": 0}, "position must be at least"),
        ("append", {"prompt": ""}, "empty"),
        ("append", {"prompt": "a", "more": 1}, "more"),
        ("park", {"now": True}, "now"),
        ("chat", {"messages": []}, "messages must be"),
    ):
        answer = client.post(f"{stream}/{name}", json=arguments)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    assert client.get(stream).json() == before


def test_streams_are_listed(client, stream):
    ids = [each["id"] for each in client.get("/v1/streams").json()["data"]]
    assert stream.rpartition("/")[2] in ids


def test_a_turn_in_the_background_goes_on_without_a_reader(client, llm, stream):
    with llm.open_stream() as twin:
        expected = text_of(
            twin.complete("once upon", SamplingParams(**SAMPLING | {"max_tokens": 50}))
        )
    body = SAMPLING | {"prompt": "once upon", "max_tokens": 50, "background": True}
    answer = client.post(f"{stream}/generate", json=body)
    assert answer.status_code == 202
    with following(client, f"{stream}/events?after={answer.json()['last_event_id']}") as events:
        first = [next(events) for _ in range(4)]
    headers = {"last-event-id": str(first[-1]["event_id"])}  # as a browser's EventSource has it
    with following(client, f"{stream}/events", headers=headers) as events:
        rest = []
        while not rest or rest[-1]["type"] != "ended":
            rest.append(next(events))
    assert said(first + rest) == expected
    ids = [event["event_id"] for event in first + rest]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert {event["turn"] for event in first + rest if event["type"] == "delta"} == {1}


def test_a_turn_in_the_background_can_be_read_and_ended(client, stream):
    body = ENDLESS | {"prompt": "a", "background": True, "stream": True}
    with following(client, f"{stream}/generate", json=body) as events:
        last = [next(events) for _ in range(5)][-1]
    refused = client.post(f"{stream}/fork")
    assert refused.status_code == 400 and "is generating" in refused.text
    assert client.get(stream).json()["is_generating"]
    with following(client, f"{stream}/events?after={last['event_id']}") as events:
        assert client.post(f"{stream}/end_turn").status_code == 200
        while (event := next(events))["type"] != "ended":
            pass
    told = client.get(stream).json()
    assert told["position"] >= event["position"] and not told["is_generating"]


def test_a_client_that_leaves_ends_its_turn_and_can_ask_what_it_missed(client, llm, stream):
    with following(
        client, f"{stream}/generate", json=ENDLESS | {"prompt": "a", "stream": True}
    ) as e:
        seen = [next(e) for _ in range(3)]
    with following(client, f"{stream}/events?after={seen[-1]['event_id']}") as events:
        while (event := next(events))["type"] != "ended":
            seen.append(event)
    position = client.get(stream).json()["position"]
    with llm.open_stream() as twin:
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=position)
        assert text_of(twin.complete("a", params)).startswith(said(seen))


def test_what_left_the_window_is_told_once_and_in_order(client, stream):
    with following(client, f"{stream}/events?after=0") as events:
        assert next(events)["type"] == "missed"
        client.post(f"{stream}/append", json={"prompt": TEXT})
        client.post(f"{stream}/generate", json=SAMPLING)
        start = client.get(stream).json()["window_start"]
        spans = []
        while not spans or spans[-1][1] < start:
            event = next(events)
            if event["type"] == "evicted":
                spans.append((event["start"], event["end"]))
    assert spans[0][0] == 4  # behind the sink tokens
    assert all(before[1] == after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] == start


def test_the_end_of_a_stream_ends_what_follows_it(client, stream):
    with following(client, f"{stream}/events?after=0") as events:
        next(events)
        client.delete(stream)
        assert list(events) == []


def test_a_socket_appends_while_the_stream_writes(client, llm, stream):
    with live(client, f"{stream}/live") as socket:
        send(socket, "append", prompt="once upon")
        assert until(socket, "answer")[-1]["position"] == 9
        send(socket, "generate", **SAMPLING | {"max_tokens": 40})
        send(socket, "append", prompt=" a time")
        messages = until(socket, "ended")
        answers = [each["to"] for each in messages if each["type"] == "answer"]
        assert answers == ["generate", "append"]
        send(socket, "generate", **SAMPLING)
        messages += until(socket, "ended")
    with llm.open_stream() as twin:
        twin.append("once upon")
        params = SamplingParams(**SAMPLING | {"max_tokens": 40})
        deltas = twin.generate(params)
        expected = next(deltas).delta_text
        twin.append(" a time")
        expected += text_of(deltas) + text_of(twin.generate(PARAMS))
    assert said(messages) == expected


def test_a_socket_interrupts(client, stream):
    with live(client, f"{stream}/live") as socket:
        send(socket, "generate", **ENDLESS | {"prompt": "a"})
        until(socket, "delta")
        for _ in range(3):  # none of these waits for the turn
            send(socket, "append", prompt="b")
        send(socket, "interrupt")
        until(socket, "ended")
        send(socket, "chat", messages="who?", max_tokens=5)
        assert until(socket, "ended")[-1]["turn"] == 2
    assert not client.get(stream).json()["is_generating"]


@pytest.mark.parametrize("background", [False, True])
def test_who_leaves_a_socket_ends_the_turn_that_is_theirs(client, stream, background):
    with live(client, f"{stream}/live") as socket:
        send(socket, "generate", **ENDLESS | {"prompt": "a", "background": background})
        last = until(socket, "delta")[-1]
    if background:
        assert client.get(stream).json()["is_generating"]
        client.post(f"{stream}/end_turn")
    with following(client, f"{stream}/events?after={last['event_id']}") as events:
        while next(events)["type"] != "ended":
            pass


def test_a_socket_says_what_is_wrong_and_goes_on(client, stream):
    with live(client, f"{stream}/live") as socket:
        for content, message in (
            ("{", "Expecting"),
            ("[" * 100_000, ""),
            ("[]", "must be an object with a type"),
            ('{"type": "fly"}', "type must be one of"),
            ('{"type": "generate", "temperature": "hot"}', "temperature"),
            ('{"type": "generate"}', "the stream is empty"),
            ('{"type": "cut", "start": 1, "end": 0}', "start and end must be a span"),
            (b"\xff\xfe", ""),
        ):
            socket.send(content)
            [refused] = until(socket, "refused")
            assert message in refused["error"]["message"]
        send(socket, "append", prompt="a")
        assert until(socket, "answer")[-1]["position"] == 1


def test_a_socket_of_no_stream_is_refused(client):
    with pytest.raises(Exception, match="HTTP 404"), live(client, "/v1/streams/nothing/live"):
        pass
