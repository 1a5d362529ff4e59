"""Offline use: prompts in, whole answers out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, cast

from tqdm import tqdm

from paged_stream.config import EngineConfig, offline_settings
from paged_stream.engine import LLMEngine
from paged_stream.inputs import Prompt
from paged_stream.outputs import CompletionOutput, RequestDelta, RequestOutput
from paged_stream.scheduler.sampling_params import SamplingParams

Messages = Sequence[dict[str, str]]


class LLM:
    """A model to run over a list of prompts.

    Args:
        model: ``"smollm2-135m-instruct"``, a folder, a ``.gguf`` file or a hub id.
        settings: any other field of `EngineConfig`; see `offline_settings`.

    Raises:
        ValueError: as `LLMEngine`.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        self.engine = LLMEngine(EngineConfig(model=model, **offline_settings(settings)))
        self._request_ids = (f"llm-{i}" for i in itertools.count())

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete one prompt (text or token ids) or a list of them.

        Args:
            sampling_params: one for all, or one per prompt.
            use_tqdm: show a progress bar.

        Returns:
            One output per prompt, in their order.

        Raises:
            ValueError: a bad prompt or parameter; then nothing is run.
        """
        prompt_list = prompt_list_of(prompts)
        per_prompt = params_per_prompt(sampling_params, len(prompt_list))
        outputs = {}
        for prompt, prompt_params in zip(prompt_list, per_prompt, strict=True):
            self.engine.check_params(prompt_params)
            output = RequestOutput(
                request_id=next(self._request_ids),
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=self.engine.encode(prompt),
                outputs=[CompletionOutput(index=index) for index in range(prompt_params.n)],
                prompt_logprobs=None if prompt_params.prompt_logprobs is None else [None],
            )
            outputs[output.request_id] = output
        completions = {output.request_id: len(output.outputs) for output in outputs.values()}
        with tqdm(total=sum(completions.values()), unit="completion", disable=not use_tqdm) as bar:
            try:
                for output, prompt_params in zip(outputs.values(), per_prompt, strict=True):
                    self.engine.add_request(
                        output.request_id, output.prompt_token_ids, prompt_params
                    )
                num_tokens = 0
                for delta in self._run(completions):
                    merge_delta(outputs[delta.request_id], delta)
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
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, with the model's chat template.

        Args:
            messages: ``[{"role": "user", "content": "..."}, ...]``, or a list of such lists.

        Raises:
            ValueError: as `generate`, or the model has no chat template.
        """
        if self.engine.tokenizer is None:
            raise ValueError(f"messages need a tokenizer, and {self.engine.config.model} has none")
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise ValueError(f"messages must be a list of dicts, got {messages!r}")
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Messages]", [messages] if one else messages)
        prompts = [self.engine.tokenizer.apply_chat_template(turns) for turns in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def score(self, prompt: Prompt, *, use_tqdm: bool = True) -> list[float | None]:
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
        with tqdm(total=len(token_ids), unit="tok", disable=not use_tqdm, initial=1) as bar:
            try:
                for delta in self._run({request_id: 1}):
                    logprobs = delta.prompt_logprobs or ()
                    scores += [entry.logprob for entry in logprobs]
                    bar.update(len(logprobs))
            finally:
                self.engine.abort_request(request_id)
        return scores

    def _run(self, completions: dict[str, int]) -> Iterator[RequestDelta]:
        """Step until these requests' completions are all finished; others keep their deltas."""
        left = sum(completions.values())
        while left:
            for delta in self.engine.step(completions):
                left -= delta.finished
                yield delta


def prompt_list_of(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Tell one prompt from a list of them; what is neither is refused later, as a prompt."""
    values = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return [cast("Prompt", values)]
    items = list(values)
    one = bool(items) and isinstance(items[0], Integral)
    return cast("list[Prompt]", [items] if one else items)


def params_per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    params = list(params)
    if len(params) != num_prompts:
        raise ValueError(f"params must be one or one per prompt ({num_prompts}), got {len(params)}")
    return params


def merge_delta(output: RequestOutput, delta: RequestDelta) -> None:
    completion = output.outputs[delta.index]
    completion.text += delta.delta_text
    completion.token_ids += delta.delta_token_ids
    completion.finish_reason = delta.finish_reason
    if delta.logprobs is not None:
        completion.logprobs = completion.logprobs or []
        completion.logprobs.extend(delta.logprobs)
    if delta.prompt_logprobs is not None and delta.index == 0:
        assert output.prompt_logprobs is not None
        output.prompt_logprobs.extend(delta.prompt_logprobs)
