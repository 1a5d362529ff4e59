"""Clients of streams that come and go as they like, a reader that never reads, and a service that
is ended and killed: each stream stays what one of an engine here would be, or is gone.

Everything is greedy, so a stream is known by what was said in it and how long it is.
"""

from __future__ import annotations

import json
import random
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests

from paged_stream import SamplingParams
from tests.serve.services import Client, serve_engine

connect = pytest.importorskip("websockets.sync.client").connect

NUM_CLIENTS, NUM_VISITS = 4, 8
ENDS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
GREEDY = {"temperature": 0.0, "ignore_eos": True}
ENDLESS = GREEDY | {"max_tokens": 10**9}


class Visitor:
    """A client with one stream, and what that stream must be.

    Attributes:
        said: what happened in it: prompts and, between them, how many tokens were generated.
    """

    def __init__(self, number):
        self._random = random.Random(number)
        self._name = f"saved-{number}"
        self._id = None
        self.said = []
        self._saved = []

    def come_back(self, base):
        """After the service has started again."""
        self._client = Client(base)
        if self._id is not None and self._client.get(self._path()).status_code == 200:
            return
        self.said = list(self._saved)
        answer = self._client.post(f"/v1/streams/saved/{self._name}/restore")
        if answer.status_code == 404:
            assert not self._saved
            answer = self._client.post("/v1/streams", json={})
        self._id = answer.json()["id"]

    def _path(self, name=""):
        return f"/v1/streams/{self._id}{name}"

    def visit(self):
        for _ in range(NUM_VISITS):
            kinds = (self._append, self._turn, self._leave, self._behind, self._socket, self._save)
            self._random.choice(kinds)()

    def _append(self):
        prompt = "".join(self._random.choices("abcdef ", k=self._random.randint(1, 40)))
        assert self._client.post(self._path("/append"), json={"prompt": prompt}).status_code == 200
        self.said.append(prompt)

    def _turn(self):
        self._append()
        body = GREEDY | {"max_tokens": self._random.randint(1, 30)}
        answer = self._client.post(self._path("/generate"), json=body).json()
        assert len(answer["token_ids"]) == body["max_tokens"]
        self._note_position()

    def _leave(self):
        self._append()
        url = self._client.base + self._path("/generate")
        with requests.post(url, json=ENDLESS | {"stream": True}, stream=True) as response:
            lines = response.iter_lines()
            for _ in range(self._random.randint(1, 20)):
                next(lines)
        self._note_position()

    def _behind(self):
        self._append()
        body = ENDLESS | {"background": True}
        assert self._client.post(self._path("/generate"), json=body).status_code == 202
        assert self._client.post(self._path("/end_turn")).status_code == 200
        self._note_position()

    def _socket(self):
        self._append()
        url = self._client.base.replace("http", "ws") + self._path("/live")
        with connect(url, close_timeout=0) as live:
            live.send(json.dumps(ENDLESS | {"type": "generate"}))
            for _ in range(self._random.randint(1, 10)):
                live.recv()
        self._note_position()

    def _save(self):
        answer = self._client.post(self._path("/save"), json={"name": self._name})
        assert answer.status_code == 200, answer.text
        self._saved = list(self.said)

    def _note_position(self):
        """How many tokens the last turn has generated, once it is over."""
        while self._client.get(self._path()).json()["is_generating"]:
            pass
        known = sum(len(each) if isinstance(each, str) else each for each in self.said)
        self.said.append(self._client.get(self._path()).json()["num_tokens"] - known)

    def check(self, llm):
        with llm.open_stream() as twin:
            for each in self.said:
                if isinstance(each, str):
                    twin.append(each)
                elif each:
                    params = SamplingParams(**GREEDY, max_tokens=each)
                    for _ in twin.generate(params):
                        pass
            assert self._client.get(self._path()).json()["num_tokens"] == twin.position
            runs = self._client.get(self._path("/visible")).json()["runs"]
            assert [run["token_ids"] for run in runs] == [r.token_ids for r in twin.visible().runs]


def never_read(base):
    """A connection whose client asks for an answer without an end and does not read it."""
    address = urlsplit(base)
    stream_id = Client(base).post("/v1/streams", json={}).json()["id"]
    body = json.dumps(ENDLESS | {"prompt": "a", "stream": True}).encode()
    head = f"POST /v1/streams/{stream_id}/generate HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect((address.hostname, address.port))
    connection.sendall(head.encode() + body)
    return connection


def test_streams_are_exact_or_gone(folder, llm, tmp_path):
    visitors = [Visitor(number) for number in range(NUM_CLIENTS)]
    for end in ENDS:
        options = {"state_dir": tmp_path / "state", "drain_seconds": 0.01}
        with serve_engine(folder, end, **options) as base, never_read(base):
            with ThreadPoolExecutor(NUM_CLIENTS) as threads:
                list(threads.map(lambda each: each.come_back(base), visitors))
                for each in visitors:
                    each.check(llm)
                list(threads.map(Visitor.visit, visitors))
            for each in visitors:
                each.check(llm)
            assert Client(base).get("/health").status_code == 200
