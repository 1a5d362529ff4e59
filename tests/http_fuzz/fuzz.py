"""Sends malformed requests to a service and looks at what comes back."""

from __future__ import annotations

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.http_fuzz.requests_of import Requests

SECONDS = 60  # for an answer, on a busy machine
MOST = 1 << 20  # bytes of an answer that are read


class Found:
    """What was found: answers by their status, and faults with the number of the request."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.faults: list[tuple[int, str]] = []


def fuzz(base: str, numbers: range, *, num_clients: int = 4) -> Found:
    """Send the requests of some numbers, and check that the service is as it was before.

    Args:
        base: the address of a service that has nothing else to do.
    """
    found = Found()
    before = _answer(base)
    made = Requests(_names(base))
    with ThreadPoolExecutor(num_clients) as threads:
        for number, (status, fault) in zip(
            numbers,
            threads.map(lambda each: _exchange(base, made.make(each)), numbers),
            strict=True,
        ):
            found.statuses[status] += 1
            if fault:
                found.faults.append((number, fault))
    if (after := _answer(base)) != before:
        found.faults.append((numbers.stop, f"an answer was {before!r} and is {after!r}"))
    return found


def _answer(base: str) -> str:
    body: Any = {"prompt": "a b", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    text: str = requests.post(f"{base}/v1/completions", json=body).json()["choices"][0]["text"]
    return text


def _names(base: str) -> dict[str, str]:
    """Things that are there, for requests that mean them."""
    model = requests.get(f"{base}/v1/models").json()["data"][0]["id"].replace("/", "%2F")
    stream = requests.post(f"{base}/v1/streams", json={"window_size": 20}).json()["id"]
    requests.post(f"{base}/v1/streams/{stream}/append", json={"prompt": list(range(5, 25))})
    body: Any = {"input": "a", "max_output_tokens": 2}
    response = requests.post(f"{base}/v1/responses", json=body).json()["id"]
    items: Any = {"items": [{"role": "user", "content": "a"}]}
    conversation = requests.post(f"{base}/v1/conversations", json=items).json()["id"]
    listed = requests.get(f"{base}/v1/conversations/{conversation}/items").json()
    return {
        "MODEL": model,
        "STREAM": stream,
        "RESPONSE": response,
        "CONVERSATION": conversation,
        "ITEM": listed["data"][0]["id"],
    }


def _exchange(base: str, sent: bytes) -> tuple[int, str | None]:
    """Send a request and read what is answered.

    Returns:
        The status, 0 if there was no answer, and what is wrong with it.
    """
    where = urlsplit(base)
    try:
        with socket.create_connection((where.hostname, where.port), timeout=SECONDS) as connection:
            try:
                connection.sendall(sent)
            except (ConnectionResetError, BrokenPipeError):
                pass  # perhaps it has said why
            response = HTTPResponse(connection, method=sent.partition(b" ")[0].decode("latin-1"))
            response.begin()
            if response.status == 101:
                return 101, None
            return response.status, _fault_of(response, response.read(MOST))
    except TimeoutError:
        return 0, f"no whole answer came within {SECONDS} s"
    except (RemoteDisconnected, ConnectionResetError):
        return 0, None  # the service hung up, which it may
    except HTTPException as error:
        return 0, f"this is no answer: {error!r}"


def _fault_of(response: HTTPResponse, body: bytes) -> str | None:
    """What is wrong with an answer."""
    status = response.status
    if status >= 500:
        return f"status {status}: {body[:500]!r}"
    if status < 400 or response.length == 0 and not body:
        return None
    if body.startswith(b"Failed to open a WebSocket"):  # the library's own words
        return None
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError) as wrong:
        return f"status {status} in another shape ({wrong!r}): {body[:500]!r}"
    if set(error) != {"message", "type", "param", "code"} or len(error["message"]) > 2000:
        return f"status {status} in another shape: {body[:3000]!r}"
    return None
