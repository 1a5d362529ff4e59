"""Malformed requests: bytes for a socket, each from its number."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.model_files_fuzz.alterations import ODD_INTEGERS, alter_bytes, alter_json

Body = dict[str, Any]

SAID = [{"role": "user", "content": "a b"}]
SHORT: Body = {
    "max_tokens": 2,
    "temperature": 0.5,
    "seed": 1,
    "stop": ["x"],
    "logit_bias": {"5": 1},
}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
SCHEMA = {"name": "s", "schema": {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}}

# Whole bodies of every route that has one.
BODIES: dict[str, list[Body]] = {
    "/v1/completions": [
        {**SHORT, "prompt": "a b", "n": 2, "echo": True, "logprobs": 2, "stream": True},
        {**SHORT, "prompt": [[5, 6], [7]], "stream_options": {"include_usage": True}},
    ],
    "/v1/chat/completions": [
        {**SHORT, "messages": SAID, "tools": TOOLS, "tool_choice": "auto", "stream": True},
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "max_completion_tokens": 3,
            "response_format": {"type": "json_schema", "json_schema": SCHEMA},
            "logprobs": True,
            "top_logprobs": 2,
        },
    ],
    "/v1/responses": [
        {"input": "a", "max_output_tokens": 2, "store": True, "metadata": {"a": "b"}},
        {"input": [{"type": "message", "role": "user", "content": "a"}], "stream": True},
        {"input": "a", "max_output_tokens": 2, "background": True},
        {"input": "a", "previous_response_id": "resp_0", "text": {"format": {"type": "text"}}},
    ],
    "/v1/responses/RESPONSE/cancel": [{}],
    "/v1/embeddings": [{"input": ["a", "b"], "encoding_format": "base64"}],
    "/tokenize": [{"prompt": "a b"}, {"messages": SAID}],
    "/detokenize": [{"tokens": [5, 6]}],
    "/v1/conversations": [{"items": [{"role": "user", "content": "a"}], "metadata": {"a": "b"}}],
    "/v1/conversations/CONVERSATION": [{"metadata": {"a": "b"}}],
    "/v1/conversations/CONVERSATION/items": [{"items": [{"role": "user", "content": "a"}]}],
    "/v1/streams": [{"window_size": 20, "num_sink_tokens": 4, "pin": "a"}],
    "/v1/streams/STREAM/append": [{"prompt": "a b"}],
    "/v1/streams/STREAM/score": [{"prompt": [5, 6]}],
    "/v1/streams/STREAM/cut": [{"start": 6, "end": 7}],
    "/v1/streams/STREAM/rewind": [{"position": 8}],
    "/v1/streams/STREAM/park": [{}],
    "/v1/streams/STREAM/end_turn": [{}],
    "/v1/streams/STREAM/save": [{"name": "tale"}],
    "/v1/streams/STREAM/generate": [{**SHORT, "prompt": "a", "stream": True}, {**SHORT}],
    "/v1/streams/STREAM/chat": [{**SHORT, "messages": SAID, "on_rewrite": "keep"}],
}
LOOKS = (
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/version",
    "/openapi.json",
    "/docs",
    "/tokenizer_info",
    "/v1/models",
    "/v1/models/MODEL",
    "/v1/streams",
    "/v1/streams/saved",
    "/v1/streams/STREAM",
    "/v1/streams/STREAM/visible?pieces=true",
    "/v1/responses/RESPONSE",
    "/v1/responses/RESPONSE/input_items?limit=3&order=asc&after=x",
    "/v1/conversations/CONVERSATION",
    "/v1/conversations/CONVERSATION/items?limit=3",
    "/v1/conversations/CONVERSATION/items/ITEM",
    "/page/main.js",
)
METHODS: tuple[bytes, ...] = (
    b"GET",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"get",
)
METHODS += (b"POST", b"PRI", b"G\xc3T", b"", b"X" * 3000)
ODD_PIECES: tuple[bytes, ...] = (
    b"%00",
    b"%2e%2e",
    b"..",
    b"%ff",
    b"%",
    b"?",
    b"#",
    b"//",
    b"\x00",
    b"\xff",
    b" ",
)
ODD_PIECES += (b"\t", b"*", b"A" * 9000, b"%u0041", b";", b"\r\n", b"\r\nx: y\r\n", b"http://a/")
TYPES: tuple[bytes, ...] = (
    b"application/json",
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"",
    b";;;",
)
TYPES += (b"multipart/form-data; boundary=x", b"application/json; charset=utf-16", b"a/b" * 4000)
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade"
HEADERS = (
    b"Host: ",
    b"Host: evil.example",
    b"Host: a\r\nHost: b",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999999",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked, chunked",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"Expect: the-unexpected",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk",
    UPGRADE,
    UPGRADE + b"\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
    b"Last-Event-ID: x",
    b"Last-Event-ID: 99999999999999999999999999",
    b"Authorization: Bearer \xff\xfe",
    b"Authorization: Basic",
    b"traceparent: 00-zz",
    b"Accept-Encoding: \x00",
    b"X: " + b"y" * 70_000,
    b" folded: x",
    b": no name",
    b"no colon",
    b"Cookie: " + b"a=b; " * 2000,
    b"Range: bytes=0-1,5-2",
    b"Origin: null",
)
VERSIONS = (b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9", b"", b"FTP/1.1")
ODD_ARGUMENTS: tuple[bytes, ...] = (
    b"after=-1",
    b"after=x",
    b"limit=0",
    b"limit=1e9",
    b"order=up",
    b"pieces=maybe",
)
ODD_ARGUMENTS += (b"stream=true", b"&&=&", b"after=" + b"9" * 5000)


class Requests:
    """Makes the request of a number.

    Args:
        names: what stands for the words of the paths that are written in capitals.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._kinds: tuple[Callable[[Random], bytes], ...] = (
            self._odd_value,
            self._odd_value,
            self._odd_value,
            self._odd_text,
            self._odd_head,
            self._odd_look,
            self._odd_chunks,
            self._odd_bytes,
        )

    def make(self, number: int) -> bytes:
        """All that a client sends."""
        random = Random(number)
        return random.choice(self._kinds)(random)

    def _odd_value(self, random: Random) -> bytes:
        """A value of the body is another one."""
        path, body = self._route(random)
        content = alter_json(random, json.dumps(body).encode())
        return _whole(b"POST", path, content)

    def _odd_text(self, random: Random) -> bytes:
        """The body is hardly JSON."""
        path, body = self._route(random)
        content = json.dumps(body).encode()
        match random.randrange(7):
            case 0:
                content = content.decode().encode(random.choice(("utf-16", "utf-32", "utf-8-sig")))
            case 1:
                content = content[:-1] + b', "prompt": "again", "input": "again"}'
            case 2:
                number = random.choice((b"NaN", b"Infinity", b"-0", b"1e999", b"9" * 5000, b"01"))
                content = content[:-1] + b', "seed": ' + number + b"}"
            case 3:
                content += random.choice((b"{}", b"\x00", b",", b"\n\n"))
            case 4:
                content = random.choice(
                    (b"", b"[" * 100_000, b'"x"', b"null", b"{" * 9000, b"\xff")
                )
            case _:
                content = alter_bytes(random, content)
        return _whole(b"POST", path, content, random.choice(TYPES))

    def _odd_head(self, random: Random) -> bytes:
        """The head is what no client should send."""
        path, body = self._route(random)
        content = json.dumps(body).encode()
        lines = [b"Host: localhost", b"Content-Type: application/json"]
        lines += [b"Content-Length: %d" % len(content)]
        for _ in range(random.choice((1, 1, 3))):
            lines.insert(random.randrange(len(lines) + 1), random.choice(HEADERS))
        if random.random() < 0.1:
            lines += [b"x-%d: y" % each for each in range(random.choice((50, 500, 5000)))]
        method = random.choice((b"POST", b"POST", *METHODS))
        version = random.choice((b"HTTP/1.1",) * 6 + VERSIONS)
        return b"\r\n".join([b" ".join((method, path, version)), *lines, b"", content])

    def _odd_look(self, random: Random) -> bytes:
        """A path or method that nobody has thought of."""
        path = self._named(random.choice((*LOOKS, *BODIES)))
        for _ in range(random.choice((0, 1, 1, 2))):
            at = random.randrange(len(path) + 1)
            path = path[:at] + random.choice(ODD_PIECES) + path[at + random.choice((0, 0, 3)) :]
        if random.random() < 0.5:
            path += random.choice((b"?", b"&")) + random.choice(ODD_ARGUMENTS)
        return _whole(random.choice((b"GET", b"GET", b"DELETE", *METHODS)), path, b"")

    def _odd_chunks(self, random: Random) -> bytes:
        """The body comes in chunks, of which some are broken."""
        path, body = self._route(random)
        rest, chunks = json.dumps(body).encode(), b""
        while rest:
            size = random.randrange(1, 30)
            chunks += b"%x\r\n%b\r\n" % (len(rest[:size]), rest[:size])
            rest = rest[size:]
        chunks += b"0\r\n\r\n"
        if random.random() < 0.7:
            chunks = alter_bytes(random, chunks)
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return head % path + b"Transfer-Encoding: chunked\r\n\r\n" + chunks

    def _odd_bytes(self, random: Random) -> bytes:
        """Something has changed on the way."""
        path, body = self._route(random)
        return alter_bytes(random, _whole(b"POST", path, json.dumps(body).encode()))

    def _route(self, random: Random) -> tuple[bytes, Body]:
        path = random.choice(list(BODIES))
        if random.random() < 0.05:
            path = path.replace("STREAM", str(random.choice(ODD_INTEGERS)))
        return self._named(path), random.choice(BODIES[path] if path in BODIES else [{}])

    def _named(self, path: str) -> bytes:
        for word, name in self._names.items():
            path = path.replace(word, name)
        return path.encode()


def _whole(method: bytes, path: bytes, content: bytes, kind: bytes = TYPES[0]) -> bytes:
    head = b"%b %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (method, path, kind, len(content)) + content
