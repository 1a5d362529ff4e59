"""Requests as users write them: one prompt or a list, with parameters and names for each; and the
whole answers that their deltas add up to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from typing import cast

from paged_stream.engine.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestDelta,
    RequestMetrics,
    RequestOutput,
)
from paged_stream.scheduler.sampling_params import SamplingParams, check_params_type
from paged_stream.text.chat import Messages
from paged_stream.text.inputs import Prompt, Prompts, prompt_text


def prompt_list_of(prompts: Prompts) -> list[Prompt]:
    """The prompts of a list of them, or the only one."""
    return split_prompts(prompts)[0]


def split_prompts(prompts: Prompts) -> tuple[list[Prompt], bool]:
    """Tell one prompt from a list of them; what is neither is refused later, as a prompt.

    Returns:
        The prompts, and whether it was one that is in no list.
    """
    tolist = getattr(prompts, "tolist", None)
    values: object = prompts if tolist is None else tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return [cast("Prompt", values)], True
    items = list(values)
    one = bool(items) and _is_number(items[0])
    return cast("list[Prompt]", [items] if one else items), one


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
                f"sampling_params must be one or one per prompt ({num_prompts}), got {len(params)}"
            )
        for each in params:
            check_params_type(each)
        return list(params)
    check_params_type(params)
    return [params] * num_prompts


def request_names() -> Iterator[str]:
    """Names for requests that were given none, without end. No exception that comes from outside
    can end it, as it would end a generator."""
    return map("request-{}".format, itertools.count())


def ids_per_prompt(
    request_ids: str | Sequence[str] | None, num_prompts: int, names: Iterable[str]
) -> list[str]:
    """Names of the requests for each prompt.

    Args:
        names: where they come from if the user gives none.

    Raises:
        ValueError: they are no strings, not as many as prompts, or not all different.
    """
    if request_ids is None:
        return [name for _, name in zip(range(num_prompts), names, strict=False)]
    if not isinstance(request_ids, Sequence):
        raise ValueError(f"request_ids must be a string or a list of them, got {request_ids!r}")
    ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
    for request_id in ids:
        check_request_id(request_id)
    if len(ids) != num_prompts:
        raise ValueError(f"request_ids must be one per prompt ({num_prompts}), got {len(ids)}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"request_ids must differ, got {ids!r}")
    return ids


def check_request_id(request_id: object) -> None:
    """Refuse what is no name of a request.

    Raises:
        ValueError: says what it is.
    """
    if not isinstance(request_id, str):
        raise ValueError(f"request_id must be a string, got {request_id!r}")


def new_output(
    request_id: str, prompt: Prompt, token_ids: list[int], params: SamplingParams
) -> RequestOutput:
    """The answer to a request of which nothing has come yet."""
    return RequestOutput(
        request_id=request_id,
        prompt=prompt_text(prompt),
        prompt_token_ids=token_ids,
        outputs=[CompletionOutput(index=index) for index in range(params.n)],
        prompt_logprobs=None if params.prompt_logprobs is None else [None],
        metrics=RequestMetrics.of_arrival(),
    )


def merge_delta(output: RequestOutput, delta: RequestDelta) -> None:
    """Add to an answer what has come of it."""
    completion = output.outputs[delta.index]
    completion.text += delta.delta_text
    completion.token_ids += delta.delta_token_ids
    completion.finish_reason, completion.error = delta.finish_reason, delta.error
    output.metrics = output.metrics.updated(delta.metrics)
    completion.stop_reason = delta.stop_reason
    if delta.logprobs is not None:
        completion.logprobs = completion.logprobs or []
        completion.logprobs.extend(delta.logprobs)
    if delta.prompt_logprobs is not None and delta.index == 0:
        assert output.prompt_logprobs is not None
        output.prompt_logprobs.extend(delta.prompt_logprobs)


def embedding_of(delta: RequestDelta) -> list[float]:
    """The embedding that the only delta of its request brings.

    Raises:
        ValueError: the request has ended with an error.
    """
    if delta.embedding is None:
        raise ValueError(f"the prompt cannot be embedded: {delta.error or delta.finish_reason}")
    return delta.embedding.tolist()


def embedding_outputs(
    prompts: Sequence[Prompt], token_ids: Sequence[list[int]], embeddings: Sequence[list[float]]
) -> list[EmbeddingRequestOutput]:
    """The answers to prompts that were embedded."""
    return [
        EmbeddingRequestOutput(
            prompt=prompt_text(prompt),
            prompt_token_ids=ids,
            outputs=EmbeddingOutput(embedding=embedding),
        )
        for prompt, ids, embedding in zip(prompts, token_ids, embeddings, strict=True)
    ]


def scores_of(delta: RequestDelta) -> list[float]:
    """The log-probabilities that a delta of a scoring brings.

    Raises:
        ValueError: the scoring has ended with an error, so that others are missing.
    """
    if delta.finish_reason == "error":
        raise ValueError(f"the prompt cannot be scored: {delta.error}")
    return [entry.logprob for entry in delta.prompt_logprobs or ()]
