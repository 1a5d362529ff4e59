"""A saved stream as a file or as bytes: K, V and a header with a version."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from paged_stream.engine.api import FilePath
from paged_stream.models.kv_file import read_header, read_tokens, to_pieces
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.sequence import MAX_TOKENS, SequenceState
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.system.short_text import short
from paged_stream.system.whole_files import Piece, read_regular, write_whole
from paged_stream.text.conversation import Conversation, from_json, to_json
from paged_stream.version import __version__

FORMAT = "paged_stream.stream"
VERSION = 5
# `EngineConfig.kv_cache_dtype` by what only one of its values caches.
_KV_CACHE_DTYPES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStream:
    """All that a stream is.

    Args:
        state: its tokens and how far they are computed.
        seed: from which its turns draw theirs; ``num_turns`` have done so.
        conversation: what it remembers of the messages in it.
        fingerprint: of the model that computed ``tokens``.
        adapter: the key of the adapter beside it; empty if there was none.
        tokens: K and V of the sinks and of what is left of the window, in order.
    """

    state: SequenceState
    seed: int
    num_turns: int
    conversation: Conversation
    fingerprint: str
    tokens: KVTokens
    adapter: str = ""

    def check(self, fingerprint: str, vocab_size: int, like: KVTokens) -> None:
        """Refuse a stream that another model computed.

        Args:
            like: K and V of any number of tokens of the model.

        Raises:
            ValueError: says so.
        """
        if self.fingerprint != fingerprint:
            raise ValueError(
                "the stream was saved with other weights, another config.json or another dtype "
                "than this engine has; load it into an engine with the same model and dtype"
            )
        ids = [*self.state.sink_ids, *self.state.tail_ids]
        if any(not 0 <= token_id < vocab_size for token_id in ids):
            raise ValueError("the stream holds token ids that the model does not have")
        for tensor, expected in zip(self.tokens, like, strict=True):
            name = _KV_CACHE_DTYPES.get(tensor.dtype, "auto")
            if name != _KV_CACHE_DTYPES.get(expected.dtype, "auto"):
                raise ValueError(
                    f"the stream was saved with kv_cache_dtype={name!r}; load it into an engine "
                    "with the same"
                )
            shape = list(tensor.shape)
            wanted = [expected.shape[0], shape[1], *expected.shape[2:]]
            if shape != wanted or tensor.dtype != expected.dtype:
                raise ValueError(
                    f"the stream has K and V of {shape} in {tensor.dtype}, the model's are "
                    f"{wanted} in {expected.dtype}"
                )


def _pieces(saved: SavedStream) -> list[Piece]:
    stream = {
        "state": asdict(saved.state),
        "seed": saved.seed,
        "num_turns": saved.num_turns,
        "conversation": to_json(saved.conversation),
        "fingerprint": saved.fingerprint,
    }
    if saved.adapter:  # which older releases refuse as a field that they do not know
        stream["adapter"] = saved.adapter
    metadata = {"format": FORMAT, "version": str(VERSION), "release": __version__}
    return to_pieces(saved.tokens, metadata | {"stream": json.dumps(stream)})


def stream_bytes(saved: SavedStream) -> bytes:
    """What `write_stream_file` writes."""
    return b"".join(_pieces(saved))


def write_stream_file(path: Path, saved: SavedStream) -> None:
    """Write a stream; the file appears whole or not at all."""
    write_whole(path, _pieces(saved))


def read_stream(source: FilePath | bytes) -> tuple[str, SavedStream]:
    """Read what `write_stream_file` wrote, or what `stream_bytes` returned.

    Returns:
        What messages call the source, and the stream.

    Raises:
        ValueError: names the source and what is wrong with it.
    """
    if isinstance(source, bytes):
        name, content = "the content", bytearray(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        name, content = str(path), _read_file(path)
    else:
        raise ValueError(f"source must be a path or bytes, got {source!r}")
    try:
        header = read_header(content)
    except ValueError as error:
        raise ValueError(f"{name} is truncated or no stream file ({error})") from None
    _check_format(header.metadata, name)
    try:
        return name, _saved_stream(read_tokens(content, header), header.metadata)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from None


def _read_file(path: Path) -> bytearray:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _check_format(metadata: dict[str, str], name: str) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{name} is no stream saved by paged_stream")
    version, release = metadata.get("version"), metadata.get("release", "a release before 0.1.0")
    if version != str(VERSION):
        raise ValueError(
            f"{name} has format version {short(version)}, and paged_stream {__version__} reads "
            f"version {VERSION}; load it with the release that wrote it ({short(release)})"
        )


def _saved_stream(tokens: KVTokens, metadata: dict[str, str]) -> SavedStream:
    """Raises ValueError: the header is not what a stream's is."""
    try:
        stream: dict[str, Any] = json.loads(metadata["stream"])
        state = stream.pop("state")
        sink_window = SinkWindow(**state.pop("sink_window"))
        state = SequenceState(sink_window=sink_window, **state)
        num_tokens = state.tail_start + len(state.tail_ids)
        conversation = from_json(stream.pop("conversation"), num_tokens)
        saved = SavedStream(state=state, conversation=conversation, tokens=tokens, **stream)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header has not the fields of a stream ({short(error)})") from None
    _check_types(saved)
    _check_counts(saved)
    return saved


def _check_types(saved: SavedStream) -> None:
    state = saved.state
    counts = (state.num_computed_tokens, state.num_prompt_tokens, state.tail_start, state.num_cut)
    lists = (state.sink_ids, state.tail_ids, state.cuts)
    if not all(isinstance(each, list) for each in lists):
        raise ValueError("its tokens are no lists")
    ids = itertools.chain(*lists)
    if not all(type(number) is int for number in (saved.seed, saved.num_turns, *counts, *ids)):
        raise ValueError("a number in its header is no integer")
    if min(saved.seed, saved.num_turns, *counts) < 0:
        raise ValueError("a number in its header is negative")
    if not isinstance(saved.fingerprint, str) or not isinstance(saved.adapter, str):
        raise ValueError("a field of its header has another type")


def _check_counts(saved: SavedStream) -> None:
    if saved.tokens.key.dim() != 4 or saved.tokens.value.shape != saved.tokens.key.shape:
        raise ValueError("its K and V have another shape")
    state, num_kept = saved.state, saved.tokens.key.shape[1]
    sinks, computed = state.sink_window.num_sink_tokens, state.num_computed_tokens
    num_tokens = state.tail_start + len(state.tail_ids)
    first_kept = state.sink_window.first_kept(computed)
    if not 0 <= state.tail_start <= first_kept <= computed <= num_tokens:
        raise ValueError("its positions contradict each other")
    if any(not state.tail_start <= cut <= num_tokens for cut in state.cuts):
        raise ValueError("something was cut out where it has no tokens")
    if num_tokens > MAX_TOKENS:
        raise ValueError(
            f"it has {short(num_tokens)} tokens; a stream can have {MAX_TOKENS}, up to where the "
            "angles of positions are exact"
        )
    if len(state.sink_ids) != min(sinks, num_tokens):
        raise ValueError("its sink tokens are not all there")
    if num_kept != state.num_kept:
        raise ValueError(f"it has K and V of {num_kept} tokens")
