"""Spans of OpenTelemetry, sent to a collector on this machine, or to what the process has."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from paged_stream import LLM, AsyncLLMEngine, EngineConfig, LLMEngine, RayLLM, SamplingParams
from paged_stream.serve.app import make_app
from paged_stream.serve.engine_backend import EngineBackend
from paged_stream.system.trace_context import to_headers

SETTINGS = {
    "window_size": 24,
    "block_size": 8,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}
PARAMS = SamplingParams(temperature=0.5, max_tokens=6, ignore_eos=True, seed=3, stop="no such text")


class Collector:
    """What has come to it, each span as a dict of its attributes and what else matters."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[dict] = []
        self.resources: list[dict] = []


@pytest.fixture
def collector():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for group in request.resource_spans:
                found.resources.append(values_of(group.resource.attributes))
                for spans in group.scope_spans:
                    found.spans += map(told, spans.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


def values_of(attributes):
    values = {}
    for each in attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        values[each.key] = (
            [v.string_value for v in value.values] if kind == "array_value" else value
        )
    return values


def told(span):
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    ids = {"trace": span.trace_id.hex(), "parent": span.parent_span_id.hex()}
    return (
        {"name": span.name, "seconds": seconds, "status": span.status.code}
        | ids
        | values_of(span.attributes)
    )


@contextmanager
def a_span():
    """One of a caller: its trace and its own id, as a collector has them."""
    tracer = TracerProvider().get_tracer("a caller")
    with tracer.start_as_current_span("call") as span:
        context = span.get_span_context()
        yield {"trace": f"{context.trace_id:032x}", "parent": f"{context.span_id:016x}"}


def test_a_request_is_told_of_as_it_was(folder, collector):
    before = time.time()
    with (
        a_span() as caller,
        LLM(str(folder), **SETTINGS, otlp_traces_endpoint=collector.url) as llm,
    ):
        [output] = llm.generate("once upon", PARAMS, use_tqdm=False)
    [span] = collector.spans
    assert span["name"] == f"text_completion {folder}"
    assert caller.items() <= span.items()
    assert span["gen_ai.request.model"] == str(folder)
    assert span["gen_ai.response.id"] == output.request_id
    assert span["gen_ai.response.finish_reasons"] == ["length"]
    assert span["gen_ai.usage.input_tokens"] == len(output.prompt_token_ids)
    assert span["gen_ai.usage.output_tokens"] == 6
    asked = ("temperature", "max_tokens", "seed", "stop_sequences")
    assert [span[f"gen_ai.request.{name}"] for name in asked] == [0.5, 6, 3, ["no such text"]]
    latencies = [
        span[f"gen_ai.latency.{n}"] for n in ("time_in_queue", "time_to_first_token", "e2e")
    ]
    assert 0 <= latencies[0] <= latencies[1] <= latencies[2] <= time.time() - before
    assert span["seconds"] == pytest.approx(latencies[2], abs=1e-6)
    [resource] = collector.resources
    assert resource["service.name"] == "paged_stream" and "telemetry.sdk.version" in resource


def test_each_completion_and_turn_has_a_span(folder, collector):
    config = EngineConfig(model=str(folder), **SETTINGS, otlp_traces_endpoint=collector.url)
    with LLMEngine(config) as engine:
        params = SamplingParams(max_tokens=3, n=2, ignore_eos=True)
        engine.generate(["a few words"], params)
        stream = engine.open_stream()
        for prompt in ("once", " more"):
            stream.append(prompt)
            with a_span() as caller:
                for _ in stream.generate(PARAMS):
                    pass
        stream.score(" and again")
        stream.close()
        engine.embed("a text")
    counts = [span["gen_ai.usage.output_tokens"] for span in collector.spans]
    assert counts == [3, 3, 6, 6, 0, 0]
    operations = [span["gen_ai.operation.name"] for span in collector.spans]
    assert operations == ["text_completion"] * 5 + ["embeddings"]
    assert ["gen_ai.request.max_tokens" in span for span in collector.spans] == [True] * 4 + [
        False
    ] * 2
    assert caller.items() <= collector.spans[3].items()
    assert collector.spans[2]["parent"] != caller["parent"]
    assert not collector.spans[4]["parent"]


def test_coroutines_have_the_spans_of_their_callers(folder, collector):
    async def ask(engine):
        with a_span() as caller:
            async for _ in engine.generate("who?", PARAMS):
                pass
        return caller["parent"]

    async def run():
        config = EngineConfig(model=str(folder), **SETTINGS, otlp_traces_endpoint=collector.url)
        async with AsyncLLMEngine(config) as engine:
            return await asyncio.gather(*(ask(engine) for _ in range(3)))

    callers = asyncio.run(run())
    assert sorted(callers) == sorted(span["parent"] for span in collector.spans)


def test_without_an_address_spans_go_where_the_process_sends_its_own(folder, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with LLM(str(folder), **SETTINGS) as llm:
        [output] = llm.generate("once upon", PARAMS, use_tqdm=False)
    [span] = exporter.get_finished_spans()
    assert span.attributes["gen_ai.response.id"] == output.request_id


def test_a_failure_is_an_error(folder, collector):
    """A request that is aborted is none, and one whose keys and values are lost is one."""
    config = EngineConfig(model=str(folder), **SETTINGS, otlp_traces_endpoint=collector.url)
    with LLMEngine(config) as engine:
        for name in ("left", "lost"):
            engine.add_request(name, "once upon", PARAMS)
        engine.abort("left")
        engine.stats()  # a call, before which the engine does what it was told
        [seq_id] = engine.core.turns.requests["lost"]
        engine.core.turns.lose(seq_id, "the disk is gone")
    left, lost = collector.spans
    assert (left["gen_ai.response.finish_reasons"], left["status"]) == (["abort"], 0)
    assert (lost["gen_ai.response.finish_reasons"], lost["status"]) == (["error"], 2)


@pytest.mark.ray
def test_a_pools_spans_are_those_of_its_callers(ray, folder, collector):
    settings = SETTINGS | {"otlp_traces_endpoint": collector.url}
    with a_span() as caller, RayLLM(str(folder), num_replicas=1, **settings) as pool:
        pool.generate("once upon", PARAMS, use_tqdm=False)
        with pool.open_stream() as stream:
            stream.append("once")
            for _ in stream.generate(PARAMS):
                pass
    assert len(collector.spans) == 2
    assert all(caller.items() <= span.items() for span in collector.spans)


def test_a_clients_span_comes_with_its_request(folder, collector):
    config = EngineConfig(model=str(folder), **SETTINGS, otlp_traces_endpoint=collector.url)

    with a_span() as caller:
        headers = to_headers()
    assert caller["trace"] in headers["traceparent"]

    async def post(app, body):
        sent = [{"type": "http.request", "body": json.dumps(body).encode()}]
        parts = []

        async def receive():
            return sent.pop() if sent else await asyncio.Event().wait()

        async def send(part):
            parts.append(part)

        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        pairs.append((b"content-type", b"application/json"))
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": pairs}
        await app(scope | {"query_string": b"", "http_version": "1.1"}, receive, send)
        return parts[0]["status"]

    async def run():
        async with AsyncLLMEngine(config) as engine:
            app = make_app(EngineBackend(engine), model="m")
            for is_streamed in (False, True):
                body = {"prompt": "who?", "max_tokens": 2, "stream": is_streamed}
                assert await post(app, body) == 200

    asyncio.run(run())
    assert len(collector.spans) == 2
    assert all(caller.items() <= span.items() for span in collector.spans)
