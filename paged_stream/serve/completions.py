"""``/v1/completions`` and ``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.serve.answers import Answer
from paged_stream.serve.choices import Choice, Echo, MessageChoice, TextChoice
from paged_stream.serve.clients import while_connected
from paged_stream.serve.description import IN_PARTS
from paged_stream.serve.events import begun, event_stream
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.logprobs import TextLogprobs
from paged_stream.serve.merged import merged
from paged_stream.serve.openai_bodies import ChatCompletion, Completion, Stateless, plain_messages
from paged_stream.serve.service import Service
from paged_stream.text.chat_options import ChatOptions


class CompletionRoutes:
    """Answers requests that leave nothing behind."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = APIRouter(prefix="/v1")
        self.router.post("/completions", responses=IN_PARTS)(self.complete)
        self.router.post("/chat/completions", responses=IN_PARTS)(self.chat)

    async def complete(self, body: Completion, request: Request) -> Response:
        self._service.adapter(body.model)
        params = body.params()
        prompts = await self._service.backend.encode(body.prompts, params)
        self._service.prompt_limit.check(sum(map(len, prompts)))
        choices = await self._text_choices(body, params, prompts)
        answer = Answer(
            body,
            body.model or self._service.model,
            "text_completion",
            choices,
            prompts,
            counts_output=not body.only_scores,
        )
        return await self._respond(body, params, prompts, answer, request)

    async def chat(self, body: ChatCompletion, request: Request) -> Response:
        self._service.adapter(body.model)
        params, use = body.params(), body.tool_use()
        options = ChatOptions(**body.settings_with(use))
        backend = self._service.backend
        token_ids = await backend.encode_chat(plain_messages(body.messages), options)
        [prompt] = await backend.encode([token_ids], params)
        self._service.prompt_limit.check(len(prompt))
        call_format, params = await self._service.reading(use, options, params)
        shown = await self._service.vocabulary.texts() if body.logprobs else None
        choices = [
            MessageChoice(index, bool(body.return_token_ids), use.reader(call_format), use, shown)
            for index in range(params.n)
        ]
        name = body.model or self._service.model
        answer = Answer(body, name, "chat.completion", choices, [prompt])
        return await self._respond(body, params, [prompt], answer, request)

    async def _text_choices(
        self, body: Completion, params: SamplingParams, prompts: Sequence[Sequence[int]]
    ) -> list[Choice]:
        choices: list[Choice] = []
        num_top = params.logprobs
        texts = None
        if num_top is not None or body.echo:
            texts = await self._service.vocabulary.texts()
        for sent, token_ids in zip(body.prompts, prompts, strict=True):
            echo = None
            if body.echo:
                assert texts is not None
                is_whole = isinstance(sent, str) and params.truncate_prompt_tokens is None
                text = sent if is_whole else texts.tokenizer.decode(token_ids)
                echo = Echo(str(text), token_ids)
            for _ in range(params.n):
                writer = None
                if texts is not None and num_top is not None:
                    writer = TextLogprobs(texts, num_top)
                shows_ids = bool(body.return_token_ids)
                choice = TextChoice(len(choices), shows_ids, echo, writer, body.only_scores)
                choices.append(choice)
        return choices

    async def _respond(
        self,
        body: Stateless,
        params: SamplingParams,
        prompts: Sequence[list[int]],
        answer: Answer,
        request: Request,
    ) -> Response:
        """Answer when all is there, or part by part."""
        engine = self._service.backend.engine
        adapter, priority = self._service.adapter(body.model), body.priority
        deltas = merged(
            [
                engine.generate(ids, params, priority=priority, lora_request=adapter)
                for ids in prompts
            ]
        )
        deltas = await while_connected(request.receive, begun(deltas))
        if body.stream:
            return event_stream(deltas, answer.part, answer.end)
        return JsonAnswer(await while_connected(request.receive, answer.whole(deltas)))
