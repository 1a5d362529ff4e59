"""The next messages of a conversation, as what is to be appended to its stream.

The chat template writes what is remembered of the conversation together with the new messages. What
it writes behind the last answer is new. What it writes before is compared with what the stream
holds, since templates may look back: many leave out what the model thought before earlier answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatOptions, as_json
from paged_stream.text.conversation import Conversation, Exchange
from paged_stream.text.held_text import Heard, HeldText, answers_of, with_answer
from paged_stream.text.tokenizer import Tokenizer

# Stand for what was forgotten, and for the last answer; letters only, so that no template edits
# them.
_QUESTION = {"role": "user", "content": "PagedStreamQuestion"}
_FORGOTTEN = "PagedStreamAnswer"
_LAST = "PagedStreamLastAnswer"


@dataclass(frozen=True, slots=True, kw_only=True)
class NextMessages:
    """What to do to the stream.

    Args:
        heard: what it was made for.
        kept: exchanges that stay as they are.
        before: as in `Conversation`.
        cut_from: position from which on everything is to be cut out first, if anything is.
        rewritten: the exchange whose end was cut out, as the template writes it now.
        rewritten_ids: what is appended in its place.
        new: the messages, not placed yet.
        new_ids: what is appended for them.
        repeats_end: whether the text of ``new`` begins with the last token of the stream.
        template_rewrote: whether the template writes earlier messages otherwise than they were.
    """

    heard: Heard
    kept: Sequence[Exchange]
    before: str
    cut_from: int | None = None
    rewritten: Exchange | None = None
    rewritten_ids: Sequence[int] = ()
    new: Exchange
    new_ids: list[int]
    repeats_end: bool = False
    template_rewrote: bool = False

    def conversation(self, position: int, num_new: int) -> Conversation:
        """The conversation, once all is appended.

        Args:
            position: where the first token of it stands.
            num_new: how many of ``new_ids`` were appended, from the end.
        """
        gap = 0 if self.cut_from is None else position - self.cut_from
        exchanges = [self._moved(each, gap) for each in self.kept]
        start = position + len(self.rewritten_ids)
        if self.rewritten is not None:
            exchanges.append(replace(self._moved(self.rewritten, gap), end=start))
        end = start + num_new
        if num_new < len(self.new_ids):
            lost = Exchange(messages=[], text="", start=end, end=end)
            return replace(self.heard.conversation, exchanges=(lost,), has_forgotten=True)
        exchanges.append(replace(self.new, start=start - self.repeats_end, end=end))
        return self.heard.conversation.extended(exchanges, self.before)

    def _moved(self, exchange: Exchange, gap: int) -> Exchange:
        """After older tokens have moved up by so many positions; sink tokens stay."""
        sinks = self.heard.num_sink_tokens
        start, end = (at + gap if at >= sinks else at for at in (exchange.start, exchange.end))
        return replace(exchange, start=start, end=end)


def next_messages(
    tokenizer: Tokenizer, heard: Heard, messages: Messages, options: StreamChatOptions
) -> NextMessages:
    """Write new messages up to where the answer to them begins.

    Raises:
        ValueError: the template refuses the messages, or cannot go on turn by turn, or rewrites
            what must stay.
    """
    if heard.conversation.exchanges:
        return _later(tokenizer, heard, messages, options)
    return _first(tokenizer, heard, messages, options)


def _first(
    tokenizer: Tokenizer, heard: Heard, messages: Messages, options: StreamChatOptions
) -> NextMessages:
    conversation, start = heard.conversation, heard.num_tokens
    pinned, before = conversation.pinned, conversation.before if conversation.pinned else ""
    text = tokenizer.render_chat_template([*pinned, *messages], options)
    if not text.startswith(before):
        raise ValueError(
            "messages: what follows a pin must begin with a message of the user; with others, or "
            f"with other options, the chat template does not begin with the {before!r} that is "
            "pinned"
        )
    if start and not pinned:  # the template may write what begins a document
        leading = tokenizer.decode(tokenizer.leading_ids, skip_special_tokens=False)
        before = leading if text.startswith(leading) else ""
    text = text.removeprefix(before)
    ids = tokenizer.encode(text, continues=start > 0, add_special_tokens=False)
    new = _exchange(messages, text, options)
    return NextMessages(heard=heard, kept=(), before=before, new=new, new_ids=ids)


def _exchange(messages: Messages, text: str, options: StreamChatOptions) -> Exchange:
    said = as_json("messages", [dict(message) for message in messages])
    continues = options.continue_final_message
    return Exchange(messages=said, text=text, start=0, end=0, continues=continues)


def _later(
    tokenizer: Tokenizer, heard: Heard, messages: Messages, options: StreamChatOptions
) -> NextMessages:
    def written(answers: Sequence[str]) -> str:
        history = _history(heard.conversation, answers)
        return tokenizer.render_chat_template([*history, *messages], options)

    conversation, (_, last_ids) = heard.conversation, heard.parts[-1]
    all_ids = [ids for _, ids in heard.parts]
    marked = written([*answers_of(tokenizer, conversation, all_ids)[:-1], _LAST])
    if marked.count(_LAST) != 1:
        raise ValueError("messages: this model's chat template cannot go on turn by turn")
    head, text = marked.split(_LAST)
    ids = tokenizer.encode(text, continues=True)
    repeats_end = bool(last_ids) and ids[:1] == last_ids[-1:]
    if repeats_end:  # the answer has the token that the template ends answers with
        all_ids[-1] = last_ids[:-1]
    past = _past(conversation, written(answers_of(tokenizer, conversation, all_ids)), head, text)
    held = HeldText(tokenizer, heard, all_ids)
    plan = NextMessages(
        heard=heard,
        kept=conversation.exchanges,
        before=conversation.before,
        new=_exchange(messages, text, options),
        new_ids=ids[repeats_end:],
        repeats_end=repeats_end,
        template_rewrote=past != held.text,
    )
    if past == held.text or options.on_rewrite == "keep":
        return plan
    if options.on_rewrite == "error":
        raise ValueError(f"on_rewrite='error': {held.difference(past)}")
    cut = held.cut(past)
    return replace(
        plan,
        kept=cut.kept,
        cut_from=cut.start,
        rewritten=cut.rewritten,
        rewritten_ids=cut.token_ids,
        new_ids=ids,
        repeats_end=False,
    )


def _history(conversation: Conversation, answers: Sequence[str]) -> list[Any]:
    """What is remembered as messages, behind stand-ins for what is not."""
    history: list[Any] = list(conversation.pinned)
    if conversation.has_forgotten:
        history.append(_QUESTION)
        if conversation.exchanges[0].messages:
            history.append({"role": "assistant", "content": _FORGOTTEN})
    for exchange, answer in zip(conversation.exchanges, answers, strict=True):
        history += with_answer(exchange, answer)
    return history


def _past(conversation: Conversation, written: str, head: str, text: str) -> str | None:
    """What the template writes in the place of what is remembered.

    Args:
        head: what it writes before the last answer.
        text: what it writes behind it.

    Returns:
        ``None`` if that cannot be told, or if it does not begin with the pin.
    """
    if not written.endswith(text):
        return None
    written = written.removesuffix(text)
    if not conversation.has_forgotten:
        return written
    if conversation.pinned and not written.startswith(conversation.before):
        return None
    if not conversation.exchanges[0].messages:
        return written.removeprefix(head) if written.startswith(head) else None
    return written.split(_FORGOTTEN)[1] if written.count(_FORGOTTEN) == 1 else None
