"""What a client has asked for ends when the client leaves, through an app and an event loop."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading

import pytest

pytest.importorskip("fastapi")
import uvicorn

from paged_stream import AsyncLLMEngine, EngineConfig
from paged_stream.serve.app import make_app
from paged_stream.serve.clients import ClientLeftError, while_connected
from paged_stream.serve.engine_backend import EngineBackend
from paged_stream.serve.events import event_stream

SETTINGS = {
    "window_size": 24,
    "block_size": 8,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}
ENDLESS = {"prompt": "once upon", "max_tokens": 10**9, "ignore_eos": True}


class Client:
    """Sends one request to an app and then leaves when it is told to."""

    def __init__(self, app, path, body):
        self.leaves = asyncio.Event()
        self.parts = asyncio.Queue()
        content = json.dumps(body).encode()
        self._messages = [{"type": "http.request", "body": content, "more_body": False}]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.answer = asyncio.ensure_future(app(scope, self._receive, self.parts.put))

    async def _receive(self):
        if self._messages:
            return self._messages.pop()
        await self.leaves.wait()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/streams/{}/generate"])
def test_an_answer_ends_when_its_client_leaves(folder, path, is_streamed):
    async def run():
        async with AsyncLLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
            app = make_app(EngineBackend(engine), model="m")
            opening = Client(app, "/v1/streams", {})
            await opening.answer
            _, content = [opening.parts.get_nowait() for _ in range(2)]
            [stream] = engine.streams.open
            path_of_stream = path.format(json.loads(content["body"])["id"])
            client = Client(app, path_of_stream, ENDLESS | {"stream": is_streamed})
            if is_streamed:
                for _ in range(3):  # the head and two tokens
                    await client.parts.get()
            while not (await engine.stats()).num_running:
                pass
            client.leaves.set()
            await client.answer
            while (await engine.stats()).num_running:
                pass
            assert not stream.is_generating

    asyncio.run(run())


def test_events_for_a_client_that_left_are_not_complained_of(caplog):
    """It resets the connection while many of them are at hand, all in one turn of the loop."""
    begun, left = threading.Event(), threading.Event()

    async def deltas():
        begun.set()
        left.wait()
        for number in range(1000):
            yield number

    async def app(scope, receive, send):
        await event_stream(deltas(), lambda number: {"number": number})(scope, receive, send)

    def visit(port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            begun.wait()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left.set()

    async def run():
        config = uvicorn.Config(app, port=0, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        await asyncio.get_running_loop().run_in_executor(None, visit, port)
        server.should_exit = True
        await serving

    asyncio.run(run())
    assert not [record.message for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize("who", ["client", "task"])
def test_what_is_cancelled_is_waited_for(who):
    async def run():
        begun, leaves, events = asyncio.Event(), asyncio.Event(), []

        async def answer():
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                events.append("cleaned up")

        async def receive():
            await leaves.wait()
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(while_connected(receive, answer()))
        await begun.wait()
        leaves.set() if who == "client" else task.cancel()
        with pytest.raises(ClientLeftError if who == "client" else asyncio.CancelledError):
            await task
        assert events == ["cleaned up"]

    asyncio.run(run())


def test_an_answer_and_an_error_come_through():
    async def receive():
        await asyncio.Event().wait()

    async def answer():
        return 5

    async def fail():
        raise KeyError("refused")

    async def run():
        assert await while_connected(receive, answer()) == 5
        with pytest.raises(KeyError, match="refused"):
            await while_connected(receive, fail())

    asyncio.run(run())
