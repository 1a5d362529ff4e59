"""The engine as lm-eval knows models. It needs the package ``lm_eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from paged_stream.engine.llm import LLM
from paged_stream.evaluation.likelihoods import Pair, batches, continuation_likelihoods
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.progress_bar import progress_bar
from paged_stream.text.chat_options import ChatOptions

NAME = "paged_stream"


class PagedStreamLM(TemplateLM):
    """A model for lm-eval, which makes it of ``--model_args``.

    Texts may be longer than the window: they are streamed through it. The engine puts requests
    together by itself, so lm-eval's batch sizes mean nothing.

    Args:
        model: as in `EngineConfig`.
        max_length: cut texts as lm-eval does for models with a limit, so that no token has more
            than so many before it. ``None`` does so only for a model that cannot have a window.
        max_gen_toks: most tokens of an answer if the task says nothing.
        prefix_token_id: what comes before a text's first token; the tokenizer's BOS or, without
            one, EOS by default.
        batch_size: of lm-eval.
        max_batch_size: of lm-eval.
        settings: other fields of `EngineConfig`.

    Raises:
        ValueError: as `LLM`, or the model has no tokenizer.
    """

    def __init__(
        self,
        model: str,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.llm = LLM(model, **settings)
        self.tokenizer = self.llm.get_tokenizer()
        self.max_length = max_length
        if max_length is None and self.llm.sink_window.window_size is None:
            # Of the last token there is no position to compute, and the engine counts it.
            self.max_length = self.llm.model_config.max_position_embeddings - 1
        self._max_gen_toks = max_gen_toks
        self._prefix_token_id = prefix_token_id

    # Text

    @property
    def eot_token_id(self) -> int:
        token_id: int = self.tokenizer.eos_token_id
        return token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text's first token."""
        for token_id in (self._prefix_token_id, self.tokenizer.bos_token_id):
            if token_id is not None:
                return int(token_id)
        return self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.llm.config.tokenizer or self.llm.config.model).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokenize, without a second BOS for a text that has one."""
        if add_special_tokens is None:
            prefix = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not has_bos_prefix(string, prefix)
        encoding = self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)
        token_ids: list[int] = encoding["input_ids"]
        return token_ids

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation in the model's chat template."""
        assert self.llm.tokenizer is not None  # `get_tokenizer` has refused that
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return self.llm.tokenizer.render_chat_template(chat_history, options)

    # Requests

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(context, continuation) for _, context, continuation in requests]
        found = continuation_likelihoods(self.llm, pairs, self.max_length)
        results: list[tuple[float, bool]] = []
        bar = progress_bar(found, total=len(pairs), desc="log-likelihoods", disable=disable_tqdm)
        for (cache_key, _, _), likelihood in zip(requests, bar, strict=True):
            results.append(tuple(likelihood))
            self.cache_hook.add_partial("loglikelihood", cache_key, results[-1])
        return results

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, each predicted from the prefix token on."""
        texts = [request.args[0] for request in requests]
        token_ids = [self.tok_encode(text) for text in texts]
        score = self._score_whole if self.max_length is None else self._score_windows
        results: list[float] = score(token_ids, disable_tqdm)
        for text, result in zip(texts, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result)
        return results

    def _score_whole(self, texts: list[list[int]], disable_tqdm: bool) -> list[float]:
        """Each text in one go, streamed through the window if it is longer."""
        prompts = [[self.prefix_token_id, *token_ids] for token_ids in texts]
        scores = self.llm.score(prompts, use_tqdm=not disable_tqdm)
        return [sum(score for score in each if score is not None) for each in scores]

    def _score_windows(self, texts: list[list[int]], disable_tqdm: bool) -> list[float]:
        """Each text in pieces, as lm-eval cuts it for a model with a limit."""
        assert self.max_length is not None
        results = [0.0] * len(texts)
        owners, pairs = [], []
        for index, token_ids in enumerate(texts):
            windows = get_rolling_token_windows(
                token_list=token_ids,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                owners.append(index)
                pairs.append(Pair(*make_disjoint_window(window)))
        found = continuation_likelihoods(self.llm, pairs, self.max_length)
        bar = progress_bar(found, total=len(pairs), desc="windows", disable=disable_tqdm)
        for index, likelihood in zip(owners, bar, strict=True):
            results[index] += likelihood.logprob
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, up to where the task's stop strings begin."""
        jobs = [self._job(*request.args) for request in requests]
        results: list[str] = []
        bar = progress_bar(total=len(jobs), desc="answers", disable=disable_tqdm)
        for batch in batches(jobs, [len(token_ids) for token_ids, _ in jobs]):
            prompts, params = zip(*batch, strict=True)
            outputs = self.llm.generate(list(prompts), list(params), use_tqdm=False)
            for each, output in zip(params, outputs, strict=True):
                context, gen_kwargs = requests[len(results)].args
                text = postprocess_generated_text(output.outputs[0].text, each.stop, None)
                self.cache_hook.add_partial("generate_until", (context, gen_kwargs), text)
                results.append(text)
                bar.update()
        bar.close()
        return results

    def _job(self, context: str, gen_kwargs: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        """Token ids of a prompt, and how to go on from it."""
        kwargs = dict(normalize_gen_kwargs(gen_kwargs, self._max_gen_toks))
        until = handle_stop_sequences(kwargs.pop("until", None), eos=None)
        max_tokens = kwargs.pop("max_gen_toks")
        if not kwargs.pop("do_sample", False):
            kwargs["temperature"] = 0.0
        params = SamplingParams(max_tokens=max_tokens, stop=[s for s in until if s], **kwargs)
        token_ids = self.tok_encode(context)
        if self.max_length is not None:
            room = self.max_length - max_tokens
            if room < 1:
                raise ValueError(
                    f"max_gen_toks must be less than max_length={self.max_length}, got {max_tokens}"
                )
            token_ids = token_ids[-room:]
        return token_ids, params
