"""Streams of a service with the face of streams here, for tests of the contract."""

from __future__ import annotations

import json
from dataclasses import fields

import requests

from paged_stream.engine.outputs import (
    RequestDelta,
    RequestMetrics,
    StreamStats,
    VisibleRun,
    VisibleText,
)
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.scheduler.settings import settings_of
from tests.serve.services import Client


def answer_of(response):
    """The content of an answer; what is wrong is raised as an engine here would raise it."""
    content = response.json()
    if response.status_code >= 400:
        raise ValueError(content["error"]["message"])
    return content


def body_of(params):
    names = [name for name, each in settings_of(SamplingParams).items() if each.in_requests]
    body = {name: getattr(params, name) for name in names}
    # What is null is left out, so there is no word for no limit.
    return body | {"max_tokens": 10**9 if params.max_tokens is None else params.max_tokens}


class HttpEngine:
    """The streams of a service with a folder for its state."""

    def __init__(self, base):
        self.client = Client(base)
        self._num_saved = 0

    def open_stream(self, **options):
        return HttpStream(self, answer_of(self.client.post("/v1/streams", json=options))["id"])

    def load_stream(self, source):
        path = f"/v1/streams/saved/{source.decode()}/restore"
        return HttpStream(self, answer_of(self.client.post(path))["id"])

    def new_name(self):
        self._num_saved += 1
        return f"saved-{self._num_saved}"

    def stats(self):
        class Stats:
            num_streams = self.client.get("/health").json()["streams"]

        return Stats


class HttpStream:
    def __init__(self, engine, stream_id):
        self._engine = engine
        self._path = f"/v1/streams/{stream_id}"

    def _post(self, name, /, **body):
        return answer_of(self._engine.client.post(f"{self._path}/{name}", json=body))

    def _get(self, path=""):
        return answer_of(self._engine.client.get(self._path + path))

    @property
    def position(self):
        return self._get()["position"]

    @property
    def is_generating(self):
        return self._get()["is_generating"]

    def append(self, prompt):
        self._post("append", prompt=prompt)

    def generate(self, params=None):
        return self._turn("generate", body_of(params or SamplingParams()))

    def complete(self, prompt, params=None):
        return self._turn("generate", body_of(params or SamplingParams()) | {"prompt": prompt})

    def chat(self, messages, params=None, **options):
        body = body_of(whole_answer(params)) | {"messages": messages} | options
        return self._turn("chat", body)

    def _turn(self, name, body):
        url = f"{self._engine.client.base}{self._path}/{name}"
        with requests.post(url, json=body | {"stream": True}, stream=True) as response:
            if response.status_code >= 400:
                answer_of(response)
            is_whole = False
            try:
                for line in response.iter_lines():
                    is_whole = is_whole or line == b"data: [DONE]"
                    event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
                    assert "error" not in event, event
                    if event.get("type") == "delta":
                        yield _delta(event)
            finally:
                response.close()
                while not is_whole and self.is_generating:
                    pass  # the service hears of it later

    def score(self, prompt):
        return self._post("score", prompt=prompt)["scores"]

    def end_turn(self):
        self._post("end_turn")

    def fork(self):
        return HttpStream(self._engine, self._post("fork")["id"])

    def cut(self, start, end):
        self._post("cut", start=start, end=end)

    def rewind(self, position):
        self._post("rewind", position=position)

    def park(self):
        self._post("park")

    def save(self, path):
        self._post("save", name=path.name)

    def save_bytes(self):
        name = self._engine.new_name()
        self._post("save", name=name)
        return name.encode()

    def stats(self):
        told = self._get()
        return StreamStats(**{field.name: told[field.name] for field in fields(StreamStats)})

    def visible(self):
        told = self._get("/visible")
        runs = [VisibleRun(**run) for run in told["runs"]]
        return VisibleText(num_sink_tokens=told["num_sink_tokens"], runs=runs)

    def close(self):
        self._engine.client.delete(self._path)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def _delta(event):
    return RequestDelta(
        request_id="",
        index=0,
        delta_text=event["text"],
        delta_token_ids=event["token_ids"],
        finished=event["finish_reason"] is not None,
        finish_reason=event["finish_reason"],
        stop_reason=event["stop_reason"],
        logprobs=None,
        prompt_logprobs=None,
        metrics=RequestMetrics.of_arrival(),
        template_rewrote=event["template_rewrote"],
    )
