"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.serve.bodies import Chat, TokenIds
from paged_stream.serve.openai_bodies import plain_messages
from paged_stream.serve.service import Service
from paged_stream.text.chat_options import ChatOptions


class TokenizeBody(Chat):
    """A prompt or a conversation."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    tokens: TokenIds


class TokenRoutes:
    """Turns text into tokens and back."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = APIRouter()
        self.router.post("/tokenize")(self.tokenize)
        self.router.post("/detokenize")(self.detokenize)
        self.router.get("/tokenizer_info")(self.info)

    async def tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        self._service.adapter(body.model)
        token_ids = await self._encode(body)
        answer = {"count": len(token_ids), "tokens": token_ids}
        if body.return_token_strs:
            texts = await self._service.vocabulary.texts()
            answer["token_strs"] = [texts.text(token_id) for token_id in token_ids]
        return answer

    async def _encode(self, body: TokenizeBody) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise ValueError("prompt or messages must be given, and not both")
        if body.messages is not None:
            messages, options = plain_messages(body.messages), ChatOptions(**body.settings())
            return await self._service.backend.encode_chat(messages, options)
        texts, prompt = await self._service.vocabulary.texts(), body.prompt or ""
        return await asyncio.to_thread(
            texts.tokenizer.encode, prompt, add_special_tokens=body.add_special_tokens
        )

    async def detokenize(self, body: DetokenizeBody) -> dict[str, Any]:
        self._service.adapter(body.model)
        if body.tokens:  # refuses what is no token
            await self._service.backend.encode([body.tokens], SamplingParams())
        texts = await self._service.vocabulary.texts()
        text = await asyncio.to_thread(texts.tokenizer.decode, body.tokens, False)
        return {"prompt": text}

    async def info(self) -> dict[str, Any]:
        return (await self._service.vocabulary.texts()).description()
