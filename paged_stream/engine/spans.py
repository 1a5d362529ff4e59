"""An engine's spans: one of OpenTelemetry's for each completion and turn that is finished.

Names are those of its conventions for generative AI, and vLLM's for latencies. A span belongs to
the one that was current where its request was made, or its turn begun.
"""

from __future__ import annotations

from typing import Any

from paged_stream.engine.outputs import RequestDelta
from paged_stream.engine.turn import Turn
from paged_stream.system.trace_context import import_opentelemetry, is_loaded
from paged_stream.version import __version__

# Fields of `SamplingParams` that OpenTelemetry has the same names for.
_ASKED = ("max_tokens", "temperature", "top_p", "top_k", "seed") + (
    "frequency_penalty",
    "presence_penalty",
)


class Spans:
    """Of one engine.

    Args:
        model: its name.
        endpoint: of an OTLP collector; without one, spans go where the process sends its own.

    Raises:
        ImportError: there is an endpoint, and the extra ``otel`` is not installed.
    """

    def __init__(self, model: str, endpoint: str | None) -> None:
        self._model = model
        self._provider = None if endpoint is None else _provider(endpoint)

    def add(self, turn: Turn, end: RequestDelta) -> None:
        """Tell of one whose last delta is ``end``."""
        if not is_loaded():
            return
        (trace,) = import_opentelemetry("trace")
        tracer = trace.get_tracer("paged_stream", __version__, self._provider)
        metrics = end.metrics
        operation = "text_completion" if end.embedding is None else "embeddings"
        span = tracer.start_span(
            f"{operation} {self._model}",
            context=turn.trace,
            start_time=_nanoseconds(metrics.arrival_time),
        )
        if span.is_recording():
            span.set_attributes(self._attributes(operation, turn, end))
            if end.finish_reason == "error":
                span.set_status(trace.StatusCode.ERROR, end.error)
        finished = metrics.finished_time
        span.end(None if finished is None else _nanoseconds(finished))

    def _attributes(self, operation: str, turn: Turn, end: RequestDelta) -> dict[str, Any]:
        metrics = end.metrics
        values = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "paged_stream",
            "gen_ai.request.model": self._model,
            "gen_ai.response.id": end.request_id,
            "gen_ai.response.finish_reasons": [end.finish_reason],
            "gen_ai.usage.input_tokens": turn.num_prompt_tokens,
            "gen_ai.usage.output_tokens": turn.num_generated_tokens,
            "gen_ai.latency.time_in_queue": metrics.time_in_queue,
        }
        for name, moment in (
            ("time_to_first_token", metrics.first_token_time),
            ("e2e", metrics.finished_time),
        ):
            if moment is not None:
                values[f"gen_ai.latency.{name}"] = moment - metrics.arrival_time
        if turn.generates or turn.num_copies:  # what only scores or embeds has no parameters
            for name in _ASKED:
                values[f"gen_ai.request.{name}"] = getattr(turn.params, name)
            values["gen_ai.request.stop_sequences"] = turn.params.stop
        if end.finish_reason == "error":
            values["error.type"] = "engine"
        return {name: value for name, value in values.items() if value is not None}

    def close(self) -> None:
        """Send what was not sent yet."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider(endpoint: str) -> Any:
    sdk, export, resources, otlp = import_opentelemetry(
        "sdk.trace",
        "sdk.trace.export",
        "sdk.resources",
        "exporter.otlp.proto.http.trace_exporter",
    )
    told = resources.OTELResourceDetector().detect().attributes  # by the environment
    resource = resources.Resource.create({"service.name": "paged_stream", **told})
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = otlp.OTLPSpanExporter(endpoint=endpoint)
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    return provider


def _nanoseconds(moment: float) -> int:
    return int(moment * 1e9)
