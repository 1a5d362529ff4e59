"""Offline use: prompts in, whole answers out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from typing import NoReturn, Unpack, cast

from tqdm import tqdm

from paged_stream.config import EngineConfig, EngineSettings, offline_settings
from paged_stream.engine.lifetime import refuse_pickling
from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.outputs import CompletionOutput, RequestDelta, RequestOutput
from paged_stream.scheduler.sampling_params import SamplingParams, check_params_type, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.inputs import Prompt, naming_item


class LLM:
    """A model to run over a list of prompts.

    Use it as a context manager, or call `close`, to free its memory. Afterwards every use raises
    `EngineStoppedError`. It belongs to the process that made it: in a forked child every use raises
    RuntimeError.

    Args:
        model: ``"smollm2-135m-instruct"``, a folder, a ``.gguf`` file or a hub id.
        settings: any other field of `EngineConfig`. ``num_decode_steps`` is 8 on every device if it
            is not given; see `offline_settings`.

    Raises:
        ValueError: as `LLMEngine`.
    """

    def __init__(self, model: str, **settings: Unpack[EngineSettings]) -> None:
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
            sampling_params: one for all, or one per prompt; ``SamplingParams()`` by default, which
                generates 16 tokens at most.
            use_tqdm: show a progress bar.

        Returns:
            One output per prompt, in their order.

        Raises:
            ValueError: a bad prompt or parameter; then nothing is run.
        """
        self.engine.lifetime.check()
        prompt_list = prompt_list_of(prompts)
        per_prompt = params_per_prompt(sampling_params, len(prompt_list))
        outputs = {}
        for index, (prompt, prompt_params) in enumerate(zip(prompt_list, per_prompt, strict=True)):
            self.engine.check_params(prompt_params)
            with naming_item("prompts", index, len(prompt_list)):
                token_ids = self.engine.encode(prompt)
            output = RequestOutput(
                request_id=next(self._request_ids),
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=token_ids,
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
            sampling_params: one for all, or one per conversation. By default, answers end where the
                model ends its turn; one that never does goes on for ever with a window, and to the
                trained length without.

        Raises:
            ValueError: as `generate`, or the model has no chat template.
        """
        tokenizer = self.engine.chat_tokenizer()
        conversations = conversations_of(messages)
        prompts = []
        for index, turns in enumerate(conversations):
            with naming_item("messages", index, len(conversations)):
                prompts.append(tokenizer.apply_chat_template(turns))
        params = params_per_prompt(sampling_params, len(prompts), default=whole_answer(None))
        return self.generate(prompts, params, use_tqdm=use_tqdm)

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

    def close(self) -> None:
        """As `LLMEngine.close`; harmless twice."""
        self.engine.close()

    def __enter__(self) -> LLM:
        self.engine.lifetime.check()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        engine = getattr(self, "engine", None)
        return f"<LLM {'that was not made' if engine is None else engine.summary}>"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("an LLM", "make one in each process")

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
    one = bool(items) and _is_number(items[0])
    return cast("list[Prompt]", [items] if one else items)


def _is_number(value: object) -> bool:
    """Whether it stands for a token, not for a prompt; an element of a tensor has no dimensions."""
    return isinstance(value, Number) or getattr(value, "shape", None) == ()


def conversations_of(messages: Messages | Sequence[Messages]) -> list[Messages]:
    """Tell one conversation from a list of them.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(messages, str):
        raise ValueError(
            f"messages must be a list of dicts, got {messages!r}; "
            f"write [{{'role': 'user', 'content': {messages!r}}}]"
        )
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of dicts, got {messages!r}")
    one = bool(messages) and isinstance(messages[0], Mapping)
    return cast("list[Messages]", [messages] if one else list(messages))


def params_per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None,
    num_prompts: int,
    *,
    default: SamplingParams | None = None,
) -> list[SamplingParams]:
    """Parameters of each prompt: the same for all, or one per prompt.

    Raises:
        ValueError: they are no parameters, or not as many as prompts.
    """
    if params is None:
        params = default or SamplingParams()
    if isinstance(params, Sequence) and not isinstance(params, str):
        if len(params) != num_prompts:
            raise ValueError(
                f"params must be one or one per prompt ({num_prompts}), got {len(params)}"
            )
        for each in params:
            check_params_type(each)
        return list(params)
    check_params_type(params)
    return [params] * num_prompts


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
