"""`SamplingParams`: what a request asks of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, TypeAlias

from .fields import LARGEST_INT, Integer, Number, Switch
from .hints import explains_settings
from .settings import changes_repr, check_fields, setting
from .structured_outputs import Structure, StructuredOutputsParams
from .word_fields import Biases, Functions, Integers, Texts

# Takes the ids of the tokens that were generated so far, as far as they are still visible, and a
# float32 tensor [vocab] of logits, which it may change in place; returns such a tensor.
LogitsProcessor: TypeAlias = Callable[[list[int], Any], Any]

MAX_COMPLETIONS = 1024  # of one prompt: all of them are made in one step
# What only Python shows: commands and HTTP answers have no place for it.
_IN_PYTHON = {"on_command_line": False, "in_requests": False}
_NO_BEAMS = "there is no beam search; n samples several completions"
_ENGINE = "it belongs to EngineConfig, LLM and open_stream"
_HINTS = {
    "max_new_tokens": "write max_tokens",
    "max_completion_tokens": "write max_tokens",
    "max_length": "write max_tokens, which does not count the prompt",
    "min_new_tokens": "write min_tokens",
    "min_length": "write min_tokens, which does not count the prompt",
    "do_sample": "temperature=0 is greedy, anything above samples",
    "num_return_sequences": "write n",
    "best_of": "n gives several completions to choose from; examples/best_of_n.py shows how",
    "use_beam_search": _NO_BEAMS,
    "num_beams": _NO_BEAMS,
    "beam_width": _NO_BEAMS,
    "length_penalty": _NO_BEAMS,
    "early_stopping": _NO_BEAMS,
    "eos_token_id": "write stop_token_ids; the model's own end tokens count anyway",
    "pad_token_id": "nothing is padded; leave it out",
    "stop_strings": "write stop",
    "stop_sequences": "write stop",
    "repeat_penalty": "write repetition_penalty",
    "bad_words_ids": "write bad_words, or logit_bias",
    "suppress_tokens": "write logit_bias={token_id: -100}",
    "logits_processor": "write logits_processors, functions of token ids and logits",
    "no_repeat_ngram_size": "write repetition_penalty or frequency_penalty",
    "random_seed": "write seed",
    "guided_decoding": "write structured_outputs=StructuredOutputsParams(...)",
    "guided_json": "write structured_outputs=StructuredOutputsParams(json=...)",
    "guided_regex": "write structured_outputs=StructuredOutputsParams(regex=...)",
    "guided_choice": "write structured_outputs=StructuredOutputsParams(choice=...)",
    "guided_grammar": "write structured_outputs=StructuredOutputsParams(grammar=...)",
    "window_size": _ENGINE,
    "num_sink_tokens": _ENGINE,
}


@explains_settings(_HINTS, example="temperature=0.8")
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SamplingParams:
    """How a request samples its tokens. Names and meanings are vLLM's.

    Args:
        n: completions per prompt.
        temperature: divides the logits. 0, or anything below 1e-5, always takes the most likely
            token.
        top_p: keep the smallest set of tokens whose probabilities sum to at least this.
        top_k: keep this many of the most likely tokens. 0 and -1 keep all.
        min_p: drop tokens that are less likely than this times the most likely one.
        presence_penalty: subtracted once from the logit of each token that was already generated.
        frequency_penalty: subtracted for each time that a token was already generated.
        repetition_penalty: divides the logits of tokens that are already in the prompt or the
            output, or multiplies them if they are negative; 1 is off. All three penalties look at
            the tokens that are still visible: what has left the window is not penalised.
        max_tokens: most tokens to generate. ``None`` goes on until something else stops the
            request: a stop token or string, or, without a window, the trained length.
        min_tokens: no stop token is sampled before so many tokens, and a stop string that is
            complete by then does not count.
        stop: strings that end the output. The text ends before the string. A special token counts
            as its name, also where the text does not show it.
        stop_token_ids: token ids that end the output, besides the model's own.
        include_stop_str_in_output: let the text end behind the stop string, or with the stop token.
        ignore_eos: do not stop at the model's end-of-sequence tokens.
        bad_words: words that are not generated. What is barred is the last token of a word whose
            others were generated just before.
        allowed_token_ids: no other tokens are generated. ``None`` allows all.
        logit_bias: added to the logits of these tokens, by id. A bias beyond -100 or 100 counts as
            that.
        logprobs: report the log-probability of each sampled token and of this many most likely
            ones, before penalties and temperature. ``None`` reports nothing.
        prompt_logprobs: the same for the prompt's tokens, given those visible before them.
        seed: of the request's random choices. With one, they do not depend on what else runs.
            ``None`` draws a seed.
        truncate_prompt_tokens: keep only the last so many tokens of the prompt. -1 keeps as many as
            one token can see; ``None`` keeps all.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: show special tokens that follow each other as the tokenizer's
            decoder does, which may put spaces between them. False puts none.
        detokenize: whether there is a text. Without one, there are token ids only.
        logits_processors: functions that are called for each token, in order, with the ids that
            were generated so far and the logits, and return other logits. The ids are those that
            are still visible, as for the penalties. A result that depends on these two arguments
            only is the same in any batch, and after a turn was interrupted. A function that raises
            ends its request with the ``finish_reason`` ``"abort"``. In a pool, it is pickled.
        structured_outputs: what the text has to be: JSON by a schema, a match of a regular
            expression, one of some texts, or text of a grammar. Nothing else can be generated, and
            the turn ends where the text is complete and cannot go on. What the other fields ask for
            counts as far as that leaves a token to choose.

    Raises:
        ValueError: names the field, its value and what is allowed.
        TypeError: there is no such field; says what to write instead.
    """

    n: int = setting(1, Integer(1, MAX_COMPLETIONS), on_command_line=False)
    temperature: float = setting(1.0, Number(0.0))
    top_p: float = setting(1.0, Number(0.0, 1.0, open_low=True))
    top_k: int = setting(0, Integer(-1, LARGEST_INT))
    min_p: float = setting(0.0, Number(0.0, 1.0))
    presence_penalty: float = setting(0.0, Number(-2.0, 2.0))
    frequency_penalty: float = setting(0.0, Number(-2.0, 2.0))
    repetition_penalty: float = setting(1.0, Number(0.01, 100.0))
    max_tokens: int | None = setting(16, Integer(1, optional=True))
    min_tokens: int = setting(0, Integer(0))
    stop: str | Seq[str] | None = setting((), Texts())
    stop_token_ids: Seq[int] | None = setting((), Integers())
    include_stop_str_in_output: bool = setting(False, Switch())
    ignore_eos: bool = setting(False, Switch())
    bad_words: str | Seq[str] | None = setting((), Texts())
    allowed_token_ids: Seq[int] | None = setting(None, Integers(optional=True))
    logit_bias: Mapping[int, float] | None = setting(None, Biases(optional=True))
    logprobs: int | None = setting(None, Integer(0, optional=True), **_IN_PYTHON)
    prompt_logprobs: int | None = setting(None, Integer(0, optional=True), **_IN_PYTHON)
    seed: int | None = setting(None, Integer(optional=True))
    truncate_prompt_tokens: int | None = setting(None, Integer(-1, optional=True))
    skip_special_tokens: bool = setting(True, Switch())
    spaces_between_special_tokens: bool = setting(True, Switch())
    detokenize: bool = setting(True, Switch(), **_IN_PYTHON)
    logits_processors: LogitsProcessor | Seq[LogitsProcessor] | None = setting(
        (), Functions(), **_IN_PYTHON
    )
    structured_outputs: StructuredOutputsParams | None = setting(None, Structure(optional=True))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens must be -1, None or at least 1, got 0")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids must have an id, or be None to allow all, got []")
        if self.stop and not self.detokenize:
            raise ValueError("stop needs a text to look in; leave detokenize=False out")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be <= max_tokens ({self.max_tokens}), got {self.min_tokens}"
            )

    __repr__ = changes_repr

    @property
    def greedy(self) -> bool:
        # Dividing by less than this leaves the range of float32.
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    @property
    def needs_history(self) -> bool:
        """Whether what is sampled depends on the tokens before it otherwise than by the logits."""
        return self.has_penalties or bool(self.bad_words) or bool(self.logits_processors)

    @property
    def edits_logits(self) -> bool:
        """Whether the logits change at any place otherwise than by a structure."""
        return (
            self.needs_history or self.allowed_token_ids is not None or self.logit_bias is not None
        )

    @property
    def changes_logits(self) -> bool:
        """Whether the logits change before temperature and the like, at any place."""
        return self.edits_logits or self.structured_outputs is not None


def whole_answer(params: SamplingParams | None) -> SamplingParams:
    """The parameters of an answer in a conversation: without any, it ends where the model ends its
    turn."""
    return SamplingParams(max_tokens=None) if params is None else params


def check_params_type(params: object) -> None:
    """Refuse what is no `SamplingParams`.

    Raises:
        ValueError: says how to write it.
    """
    if isinstance(params, SamplingParams):
        return
    hint = "pass SamplingParams(...)"
    if isinstance(params, Mapping) and all(str(name).isidentifier() for name in params):
        arguments = ", ".join(f"{name}={value!r}" for name, value in params.items())
        hint = f"write SamplingParams({arguments})"
    raise ValueError(f"params must be SamplingParams, got {params!r}; {hint}")
