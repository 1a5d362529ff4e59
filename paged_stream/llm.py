"""Offline use: prompts in, whole answers out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

from tqdm import tqdm

from paged_stream.config import EngineConfig
from paged_stream.engine import LLMEngine, Prompt
from paged_stream.outputs import CompletionOutput, RequestDelta, RequestOutput
from paged_stream.scheduler.sampling_params import SamplingParams

Messages = Sequence[dict[str, str]]


class LLM:
    """A model to run over a list of prompts.

    Args:
        model: ``"smollm2-135m-instruct"``, a folder, a ``.gguf`` file or a hub id.
        settings: any other field of `EngineConfig`.

    Raises:
        ValueError: as `LLMEngine`.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        self.engine = LLMEngine(EngineConfig(model=model, **settings))
        self._request_ids = (f"llm-{i}" for i in itertools.count())

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Complete one prompt (text or token ids) or a list of them.

        Args:
            params: one for all, or one per prompt.
            progress: show a progress bar.

        Returns:
            One output per prompt, in their order.

        Raises:
            ValueError: a bad prompt or parameter; then nothing is run.
        """
        prompt_list = _as_list(prompts)
        per_prompt = _per_prompt(params, len(prompt_list))
        outputs = {}
        for prompt, prompt_params in zip(prompt_list, per_prompt, strict=True):
            self.engine.check_params(prompt_params)
            output = RequestOutput(
                request_id=next(self._request_ids),
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=self.engine.encode(prompt),
                outputs=[CompletionOutput(index=index) for index in range(prompt_params.n)],
            )
            outputs[output.request_id] = output
        total = sum(prompt_params.n for prompt_params in per_prompt)
        with tqdm(total=total, unit="completion", disable=not progress) as bar:
            try:
                for output, prompt_params in zip(outputs.values(), per_prompt, strict=True):
                    self.engine.add_request(
                        output.request_id, output.prompt_token_ids, prompt_params
                    )
                num_tokens = 0
                for delta in self._run(outputs):
                    _merge(outputs[delta.request_id], delta)
                    num_tokens += len(delta.delta_token_ids)
                    if delta.finished:
                        bar.update()
                        elapsed = bar.format_dict["elapsed"] or 1e-9
                        bar.set_postfix_str(f"{num_tokens / elapsed:.0f} tok/s")
            finally:
                for request_id in outputs:
                    self.engine.abort_request(request_id)
        return list(outputs.values())

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, with the model's chat template.

        Args:
            messages: ``[{"role": "user", "content": "..."}, ...]``, or a list of such lists.

        Raises:
            ValueError: as `generate`, or the model has no chat template.
        """
        if self.engine.tokenizer is None:
            raise ValueError(f"messages need a tokenizer, and {self.engine.config.model} has none")
        one = bool(messages) and isinstance(messages[0], dict)
        conversations = cast("Sequence[Messages]", [messages] if one else messages)
        prompts = [self.engine.tokenizer.apply_chat_template(turns) for turns in conversations]
        return self.generate(prompts, params, progress=progress)

    def score(self, prompt: Prompt, *, progress: bool = True) -> list[float | None]:
        """Log-probability of each token of a prompt of any length, given what it could see.

        Raises:
            ValueError: as `generate`.

        Returns:
            One natural logarithm per token; ``None`` for the first, which nothing predicts.
        """
        token_ids = self.engine.encode(prompt)
        scores: list[float | None] = [None]
        if len(token_ids) == 1:
            return scores
        request_id = next(self._request_ids)
        self.engine.add_score_request(request_id, token_ids)
        with tqdm(total=len(token_ids), unit="tok", disable=not progress, initial=1) as bar:
            try:
                for delta in self._run((request_id,)):
                    logprobs = delta.prompt_logprobs or ()
                    scores += [entry.logprob for entry in logprobs]
                    bar.update(len(logprobs))
            finally:
                self.engine.abort_request(request_id)
        return scores

    def _run(self, request_ids: Any) -> Iterator[RequestDelta]:
        while self.engine.has_unfinished_requests():
            yield from (delta for delta in self.engine.step() if delta.request_id in request_ids)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    one = bool(items) and not any(isinstance(item, str | Sequence) for item in items)
    return cast("list[Prompt]", [items] if one else items)


def _per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    params = list(params)
    if len(params) != num_prompts:
        raise ValueError(f"params must be one or one per prompt ({num_prompts}), got {len(params)}")
    return params


def _merge(output: RequestOutput, delta: RequestDelta) -> None:
    completion = output.outputs[delta.index]
    completion.text += delta.delta_text
    completion.token_ids += delta.delta_token_ids
    completion.finish_reason = delta.finish_reason
    if delta.logprobs is not None:
        completion.logprobs = (completion.logprobs or []) + delta.logprobs
    if delta.prompt_logprobs is not None and delta.index == 0:
        output.prompt_logprobs = (output.prompt_logprobs or [None]) + delta.prompt_logprobs
