"""A saved stream: K, V and a versioned header in the safetensors format, as a file or as bytes."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from paged_stream.engine.api import FilePath
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.sequence import SequenceState
from paged_stream.scheduler.sink_window import SinkWindow

FORMAT = "paged_stream.stream"
VERSION = 3
# `EngineConfig.kv_cache_dtype` by what only one of its values caches.
_KV_CACHE_DTYPES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStream:
    """All that a stream is.

    Args:
        state: its tokens and how far they are computed.
        seed: from which its turns draw theirs; ``num_turns`` have done so.
        pinned_messages: what it was opened with, in the chat template.
        has_chatted: whether a message was answered since.
        fingerprint: of the model that computed ``tokens``.
        tokens: K and V of the sinks and of what is left of the window, in order.
    """

    state: SequenceState
    seed: int
    num_turns: int
    pinned_messages: list[dict[str, Any]]
    has_chatted: bool
    fingerprint: str
    tokens: KVTokens

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


def _metadata(saved: SavedStream) -> dict[str, str]:
    header = {
        "state": asdict(saved.state),
        "seed": saved.seed,
        "num_turns": saved.num_turns,
        "pinned_messages": saved.pinned_messages,
        "has_chatted": saved.has_chatted,
        "fingerprint": saved.fingerprint,
    }
    return {"format": FORMAT, "version": str(VERSION), "stream": json.dumps(header)}


def stream_bytes(saved: SavedStream) -> bytes:
    """What `write_stream_file` writes."""
    return save(saved.tokens._asdict(), _metadata(saved))


def write_stream_file(path: Path, saved: SavedStream) -> None:
    """Write a stream; the file appears whole or not at all."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:  # which names the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(descriptor)
    try:
        try:
            save_file(saved.tokens._asdict(), temporary, _metadata(saved))
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(f"cannot write {path}: {error}") from error
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_stream(source: FilePath | bytes) -> tuple[str, SavedStream]:
    """Read what `write_stream_file` wrote, or what `stream_bytes` returned.

    Returns:
        What messages call the source, and the stream.

    Raises:
        ValueError: names the source and what is wrong with it.
    """
    if isinstance(source, bytes):
        name = "the stream's bytes"
        metadata, tokens = _read_bytes(source, name)
    elif isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        name = str(path)
        metadata, tokens = _read_file(path)
    else:
        raise ValueError(f"source must be a path or bytes, got {source!r}")
    try:
        header: dict[str, Any] = json.loads(metadata["stream"])
        state = header.pop("state")
        sink_window = SinkWindow(**state.pop("sink_window"))
        saved = SavedStream(
            state=SequenceState(sink_window=sink_window, **state), tokens=tokens, **header
        )
        _check_types(saved)
        _check_counts(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    return name, saved


def _read_file(path: Path) -> tuple[dict[str, str], KVTokens]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(metadata, str(path))
            return metadata, KVTokens(file.get_tensor("key"), file.get_tensor("value"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no stream file ({error})") from None


def _read_bytes(content: bytes, name: str) -> tuple[dict[str, str], KVTokens]:
    try:
        tensors = load(content)
        # The safetensors library gives metadata of files only: behind 8 bytes of its length, JSON.
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        _check_format(metadata, name)
        return metadata, KVTokens(tensors["key"], tensors["value"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{name} are truncated or no stream ({error})") from None


def _check_format(metadata: dict[str, str], name: str) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{name} is no stream saved by paged_stream")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{name} has format version {metadata.get('version')}, this is version "
            f"{VERSION} of paged_stream's; load it with the release that wrote it"
        )


def _check_types(saved: SavedStream) -> None:
    state = saved.state
    counts = (state.num_computed_tokens, state.num_prompt_tokens, state.tail_start, state.num_cut)
    ids = (*state.sink_ids, *state.tail_ids, *state.cuts)
    if not all(type(number) is int for number in (saved.seed, saved.num_turns, *counts, *ids)):
        raise ValueError("a number in its header is no integer")
    if min(saved.seed, saved.num_turns, *counts) < 0:
        raise ValueError("a number in its header is negative")
    messages = saved.pinned_messages
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise ValueError("its pinned messages are no list of messages")
    if type(saved.has_chatted) is not bool or not isinstance(saved.fingerprint, str):
        raise ValueError("a field of its header has another type")


def _check_counts(saved: SavedStream) -> None:
    if saved.tokens.key.dim() != 4 or saved.tokens.value.shape != saved.tokens.key.shape:
        raise ValueError("its K and V have another shape")
    state, num_kept = saved.state, saved.tokens.key.shape[1]
    sinks, computed = state.sink_window.num_sink_tokens, state.num_computed_tokens
    num_tokens = state.tail_start + len(state.tail_ids)
    first_kept = state.sink_window.first_kept(computed)
    # No stream has seen so many; beyond, the kernels' arithmetic would overflow.
    if not 0 <= state.tail_start <= first_kept <= computed <= num_tokens <= 1 << 60:
        raise ValueError("its positions contradict each other")
    if any(not state.tail_start <= cut <= num_tokens for cut in state.cuts):
        raise ValueError("something was cut out where it has no tokens")
    if len(state.sink_ids) != min(sinks, num_tokens):
        raise ValueError("its sink tokens are not all there")
    if num_kept != state.num_kept:
        raise ValueError(f"it has K and V of {num_kept} tokens")
