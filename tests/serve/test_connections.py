"""Connections: how many there are, and how long and how large the head of a request may be."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("fastapi")

import uvicorn

from paged_stream.serve.patience import patient


async def serve(app, http):
    """Serve an application; returns the server, the task that serves, and the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=http, lifespan="off", log_config=None))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    return server, serving, server.servers[0].sockets[0].getsockname()[1]


def test_a_socket_outlives_the_time_for_a_head():
    connect = pytest.importorskip("websockets.asyncio.client").connect

    async def run():
        waited = asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            await waited.wait()
            await send({"type": "websocket.send", "text": "still here"})
            await send({"type": "websocket.close"})

        server, serving, port = await serve(app, patient(0.1, 9))
        async with connect(f"ws://127.0.0.1:{port}") as socket:
            reader, _ = await asyncio.open_connection("127.0.0.1", port)
            assert await _rest(reader) == b""  # who came later has had its time
            waited.set()
            assert await socket.recv() == "still here"
        server.should_exit = True
        await serving

    asyncio.run(run())


def test_clients_that_do_not_send_a_head_in_time():
    async def run():
        goes_on = asyncio.Event()

        async def app(scope, receive, send):
            await goes_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"answer"})

        server, serving, port = await serve(app, patient(0.1, 9))
        head = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"

        async def connect(content):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(content)
            return reader, writer

        reader, writer = await connect(head)
        for content in (b"", b"GET / HTTP/1.1\r\n"):
            assert await _rest((await connect(content))[0]) == b""
        goes_on.set()  # the first request has waited for longer than a head may take
        answer = await reader.readuntil(b"0\r\n\r\n")
        assert b"200" in answer and b"answer" in answer
        writer.write(head[:5])  # and on a connection that is kept
        assert await _rest(reader) == b""
        server.should_exit = True
        await serving

    asyncio.run(run())


def test_more_connections_than_the_limit():
    async def run():
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        server, serving, port = await serve(app, patient(60, most=2))
        first, second = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        while len(server.server_state.connections) < 2:
            await asyncio.sleep(0)
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head
        assert b"content-length: %d" % len(body) in head
        assert json.loads(body)["error"]["message"] == "2 connections are open; try again later"
        second[1].close()
        while len(server.server_state.connections) > 1:
            await asyncio.sleep(0)
        for reader, writer in (first, await asyncio.open_connection("127.0.0.1", port)):
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 204 ")
            writer.close()
        server.should_exit = True
        await serving

    asyncio.run(run())


async def _rest(reader):
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


class Answer(asyncio.Protocol):
    """All that comes before the connection ends, even if it is reset."""

    def __init__(self):
        self.whole, self._came = asyncio.get_running_loop().create_future(), b""

    def data_received(self, data):
        self._came += data

    def connection_lost(self, error):
        self.whole.set_result(self._came)


HEAD = b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([HEAD, b"content-length: 70000\r\n\r\n", b"x" * 70_000], 200),
        ([HEAD, b"no colon\r\n\r\n"], 400),
        ([HEAD, b"x: ", *[b"y" * 30_000] * 3, b"\r\n\r\n"], 431),
        ([HEAD, *[b"x: y\r\n"] * 20_000, b"\r\n"], 431),
        ([b"GET /" + b"y" * 70_000], 431),
        ([HEAD, b"transfer-encoding: chunked\r\n\r\n0;", *[b"y" * 30_000] * 30], 431),
        ([HEAD, b"transfer-encoding: chunked\r\n\r\n0\r\n", *[b"x: y\r\n"] * 20_000], 431),
        ([UPGRADE, b"content-length: 5\r\n\r\nhello"], 400),
        ([UPGRADE, *[b"x: y\r\n"] * 200, b"\r\n"], 400),
    ],
)
def test_heads(parts, status):
    """They come within limits, or are refused; and none is waited for that never comes."""
    pytest.importorskip("httptools")

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run():
        server, serving, port = await serve(app, patient(60, 9))
        loop = asyncio.get_running_loop()
        transport, answer = await loop.create_connection(Answer, "127.0.0.1", port)
        for part in parts:
            transport.write(part)
        head, _, body = (await answer.whole).partition(b"\r\n\r\n")
        assert head.split()[1] == b"%d" % status
        if status != 200 and parts[0] != UPGRADE:  # which a library refuses in words of its own
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
        server.should_exit = True
        await serving

    asyncio.run(run())
