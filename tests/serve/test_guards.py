"""What a request has to get past before a route sees it, without a server."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI, Request

from paged_stream.serve.app import make_app
from paged_stream.serve.errors import add_errors
from paged_stream.serve.guards import Guards
from paged_stream.serve.serve_options import ServeOptions


class Service:
    """An application whose one route waits until it is let go on."""

    def __init__(self, **options):
        self.app, self.go_on, self.num_waiting = FastAPI(), asyncio.Event(), 0
        self.app.add_middleware(Guards, options=ServeOptions(**options))
        add_errors(self.app)

        @self.app.post("/wait")
        async def wait(request: Request) -> int:
            size = len(await request.body())
            self.num_waiting += 1
            await self.go_on.wait()
            return size

        @self.app.get("/health")
        @self.app.get("/look")
        async def look() -> str:
            return "here"

    async def ask(self, path="/look", **request):
        return await ask(self.app, path, **request)


async def ask(app, path, headers=(), parts=(b"",), method="GET"):
    """Status, headers and content of an answer. A body without an end never ends."""
    sent, waiting = [], list(parts)

    async def receive():
        if not waiting or waiting[0] is None:
            await asyncio.Event().wait()
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], headers, json.loads(content) if content.startswith(b"{") else content


def asked(*requests, **options):
    """Statuses of answers to requests, one after the other."""

    async def run():
        service = Service(**options)
        service.go_on.set()
        answers = [await service.ask(**request) for request in requests]
        for status, _, content in answers:
            assert status == 200 or content["error"].keys() == {"message", "type", "param", "code"}
        return [status for status, _, _ in answers]

    return asyncio.run(run())


def under(name):
    return {"headers": [("host", name)]}


def with_key(value, path="/look"):
    return {"headers": [("authorization", value)], "path": path}


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({}, ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000"], ["evil.example"]),
        ({"host": "::1"}, ["[::1]", "localhost"], ["[::2]:80", "127.0.0.1.evil.example"]),
        ({"host": "0.0.0.0"}, ["anything", "192.0.2.1:80"], []),
        ({"host": "0.0.0.0", "allowed_hosts": "a.example"}, ["a.example:80"], ["localhost", "b"]),
        ({"allowed_hosts": ["*"]}, ["anything"], []),
    ],
)
def test_the_name_that_a_request_is_sent_to(options, good, bad):
    assert asked(*map(under, good), {}, **options) == [200] * (len(good) + 1)
    assert asked(*map(under, bad), **options) == [400] * len(bad)


def test_keys(tmp_path):
    (tmp_path / "keys").write_text("\nfrom-file\n")
    options = {"api_key": ["one", "zwei"], "api_key_file": str(tmp_path / "keys")}
    good = ["Bearer one", "bearer zwei", "Bearer from-file"]
    assert asked(*map(with_key, good), **options) == [200] * 3
    bad = ["Bearer on", "Bearer onee", "Bearer ", "Basic one", "one", "Bearer One", ""]
    assert asked(*map(with_key, bad), {}, **options) == [401] * 8
    assert asked({"path": "/nothing"}, **options) == [401]  # nothing is told of what there is
    assert asked({"path": "/health"}, with_key("Bearer x", "/health"), **options) == [200, 200]


@pytest.mark.parametrize("content", [None, "\n \n"])
def test_a_file_without_keys_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(ValueError, match="api_key_file=.*keys"):
        _ = ServeOptions(api_key_file=str(tmp_path / "keys")).keys


def test_large_bodies():
    length = {"headers": [("content-length", "11")]}
    post = {"path": "/wait", "method": "POST"}
    requests = [post | {"parts": [b"x" * 5, b"x" * 5]}, post | {"parts": [b"x" * 5, b"x" * 6]}]
    # What says that it is too large is not read at all.
    requests.append(post | length | {"parts": [None]})
    assert asked(*requests, max_body_bytes=10) == [200, 413, 413]


def test_slow_bodies():
    post = {"path": "/wait", "method": "POST"}
    assert asked(post | {"parts": [b"x", None]}, request_seconds=0.01) == [408]


def test_an_answer_may_take_longer_than_its_request():
    async def run():
        service = Service(request_seconds=0.01)
        answer = asyncio.ensure_future(service.ask("/wait", method="POST"))
        await asyncio.sleep(0.05)  # longer than the request may take
        service.go_on.set()
        assert (await answer)[0] == 200

    asyncio.run(run())


def test_more_requests_than_the_limit():
    async def run():
        service = Service(max_requests=2)
        first = [asyncio.ensure_future(service.ask("/wait", method="POST")) for _ in range(2)]
        while service.num_waiting < 2:
            await asyncio.sleep(0)
        status, headers, content = await service.ask("/wait", method="POST")
        assert status == 429 and headers["retry-after"] == "1"
        assert content["error"]["code"] == "queue_full"
        assert (await service.ask())[0] == 200  # who only looks at something is no burden
        first[0].cancel()
        await asyncio.wait(first[:1])
        service.go_on.set()
        assert (await service.ask("/wait", method="POST"))[0] == 200
        assert (await first[1])[0] == 200

    asyncio.run(run())


class Backend:
    """What a service has behind it, without an engine."""

    engine = None

    def __init__(self, num_replicas=1):
        self._num_replicas = num_replicas

    async def health(self):
        return {"replicas": self._num_replicas}


@pytest.mark.parametrize(("num_replicas", "status"), [(0, 503), (2, 200)])
def test_a_service_without_a_replica_is_not_ready(num_replicas, status):
    app = make_app(Backend(num_replicas), model="m")
    assert asyncio.run(ask(app, "/ready"))[0] == status
    assert asyncio.run(ask(app, "/health"))[0] == 200


@pytest.mark.parametrize("origins", [(), ["https://a.example"]])
def test_pages_of_other_sites(origins):
    options = ServeOptions(allowed_origins=origins, api_key="k")
    app = make_app(Backend(), model="m", options=options)
    preflight = [("access-control-request-method", "POST")]
    for origin in ("https://a.example", "https://b.example"):
        headers = [("origin", origin), *preflight]
        path = "/v1/completions"
        status, told, _ = asyncio.run(ask(app, path, headers, method="OPTIONS"))
        is_allowed = origin in origins
        assert (told.get("access-control-allow-origin") == origin) == is_allowed
        assert (status == 200) == is_allowed


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("authorization", "Bearer k")], 101),
        ([], 401),
        ([("authorization", "Bearer other")], 401),
        ([("host", "b.example"), ("authorization", "Bearer k")], 400),
        ([("origin", "http://localhost:8000"), ("authorization", "Bearer k")], 101),
        ([("origin", "https://a.example"), ("authorization", "Bearer k")], 101),
        ([("origin", "https://b.example"), ("authorization", "Bearer k")], 403),
        ([("origin", "null"), ("authorization", "Bearer k")], 403),
    ],
)
def test_sockets_need_the_same_and_browsers_do_not_open_them_for_others(headers, status):
    async def run():
        sent = []

        async def app(scope, receive, send):
            await send({"type": "websocket.accept"})

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        options = ServeOptions(api_key="k", allowed_origins="https://a.example")
        sent_to = [("host", "localhost:8000")] * ("host" not in dict(headers))
        scope = {
            "type": "websocket",
            "path": "/v1/streams/s/live",
            "headers": [(name.encode(), value.encode()) for name, value in sent_to + headers],
            "extensions": {"websocket.http.response": {}},
        }
        await Guards(app, options)(scope, receive, send)
        assert sent[0].get("status", 101) == status

    asyncio.run(run())


def test_sockets_count_as_requests():
    async def run():
        opened, goes_on = [], asyncio.Event()

        async def app(scope, receive, send):
            opened.append(scope)
            await goes_on.wait()

        guards, sent = Guards(app, ServeOptions(max_requests=1)), []
        scope = {"type": "websocket", "path": "/", "headers": []}

        async def send(message):
            sent.append(message)

        first = asyncio.ensure_future(guards(dict(scope), None, send))
        await asyncio.sleep(0)
        await guards(dict(scope), None, send)
        assert len(opened) == 1 and sent[0]["status"] == 429
        goes_on.set()
        await first

    asyncio.run(run())
