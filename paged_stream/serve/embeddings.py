"""``/v1/embeddings``."""

from __future__ import annotations

import base64
import struct
from typing import Any

from fastapi import APIRouter, Request

from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.serve.clients import while_connected
from paged_stream.serve.openai_bodies import Embedding
from paged_stream.serve.service import Service


class EmbeddingRoutes:
    """Turns texts into vectors."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = APIRouter(prefix="/v1")
        self.router.post("/embeddings")(self.embed)

    async def embed(self, body: Embedding, request: Request) -> dict[str, Any]:
        adapter = self._service.adapter(body.model)
        backend = self._service.backend
        prompts = await backend.encode(body.prompts, SamplingParams())
        num_tokens = sum(map(len, prompts))
        self._service.prompt_limit.check(num_tokens)
        embedding = backend.engine.embed(prompts, lora_request=adapter)
        outputs = await while_connected(request.receive, embedding)
        shown = _base64 if body.encoding_format == "base64" else list
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": shown(each.outputs.embedding)}
                for index, each in enumerate(outputs)
            ],
            "model": body.model or self._service.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }


def _base64(embedding: list[float]) -> str:
    """The bytes of the numbers as little-endian float32, as OpenAI's clients ask for them."""
    return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
