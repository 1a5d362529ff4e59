"""The LoRA adapters of an engine: which are loaded, and under which numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from paged_stream.engine.lora_request import LoRARequest
from paged_stream.models.formats.resolve import resolve_adapter


class Chosen(NamedTuple):
    """What a request or stream is to be computed with, and the folder where that is; none if it is
    loaded."""

    lora_request: LoRARequest | None
    folder: Path | None


NO_ADAPTER = Chosen(None, None)


def check_adapter(lora_request: LoRARequest | None, *, optional: bool = True) -> None:
    """Raise ValueError for what is no `LoRARequest`, nor ``None`` if it is optional."""
    if not (isinstance(lora_request, LoRARequest) or (optional and lora_request is None)):
        raise ValueError(f"lora_request must be a LoRARequest, got {lora_request!r}")


def per_prompt(
    lora_request: LoRARequest | Sequence[LoRARequest | None] | None, num_prompts: int
) -> list[LoRARequest | None]:
    """The adapter of each prompt: the same for all, or one per prompt.

    Raises:
        ValueError: there are not as many as prompts.
    """
    if not isinstance(lora_request, Sequence) or isinstance(lora_request, str):
        return [lora_request] * num_prompts
    if len(lora_request) != num_prompts:
        raise ValueError(
            f"lora_request must be one or one per prompt ({num_prompts}), got {len(lora_request)}"
        )
    return list(lora_request)


class Adapters:
    """Those of one engine; for its thread, but for `choose`.

    Args:
        load: as `Executor.load_adapter`.
        drop: as `Executor.drop_adapter`.
        in_use: returns the keys of the adapters that sequences have.
    """

    def __init__(
        self,
        load: Callable[[Path], str],
        drop: Callable[[str], None],
        in_use: Callable[[], Collection[str]],
    ) -> None:
        self._load, self._drop, self._in_use = load, drop, in_use
        self._loaded: dict[int, tuple[LoRARequest, str]] = {}

    def choose(self, lora_request: LoRARequest | None) -> Chosen:
        """Find the folder of an adapter that is not loaded, downloading it once if it is on the
        hub; for any thread.

        Raises:
            ValueError: it is no `LoRARequest`, or there is no adapter.
        """
        check_adapter(lora_request)
        if lora_request is None:
            return NO_ADAPTER
        if lora_request.lora_int_id in self._loaded:  # or another one, which `key` refuses
            return Chosen(lora_request, None)
        return Chosen(lora_request, _folder(lora_request))

    def key(self, chosen: Chosen) -> str:
        """What sequences call an adapter, which is loaded if it is not yet; empty for none.

        Raises:
            ValueError: it cannot be loaded, or another one has its number.
        """
        lora_request, folder = chosen
        if lora_request is None:
            return ""
        number = lora_request.lora_int_id
        if number not in self._loaded:  # perhaps any more
            self._loaded[number] = lora_request, self._load(folder or _folder(lora_request))
        known, key = self._loaded[number]
        if known != lora_request:
            raise ValueError(
                f"lora_int_id={number} is {known.lora_name!r} from {known.lora_path}; give "
                f"{lora_request.lora_name!r} another number, or remove the other one first"
            )
        return key

    def key_of_saved(self, chosen: Chosen, saved: str) -> str:
        """What a stream from a file goes on with.

        Args:
            chosen: by the user; by default, what it was computed with, if that is loaded.
            saved: the key of what it was computed with; empty for none.

        Raises:
            ValueError: that is another one, or as `key`.
        """
        if chosen is NO_ADAPTER and any(saved == key for _, key in self._loaded.values()):
            return saved
        key = self.key(chosen)
        if key == saved:
            return key
        if not saved:
            raise ValueError("the stream was computed without an adapter; leave out lora_request")
        another = ", this is another one" if key else ""
        raise ValueError(
            f"the stream was computed with an adapter; pass it as lora_request{another}"
        )

    def remove(self, lora_id: int) -> bool:
        """Let go of an adapter; whether there was one of that number.

        Raises:
            ValueError: requests or streams have it.
        """
        if lora_id not in self._loaded:
            return False
        lora_request, key = self._loaded[lora_id]
        is_shared = sum(key == other for _, other in self._loaded.values()) > 1
        if not is_shared:
            if key in self._in_use():
                name = lora_request.lora_name
                raise ValueError(f"adapter {name!r} is in use by a request or an open stream")
            self._drop(key)
        del self._loaded[lora_id]
        return True

    def keys(self) -> list[str]:
        """Of all that are loaded, in the order of their numbers."""
        return [key for _, (_, key) in sorted(self._loaded.items())]

    def numbers(self) -> set[int]:
        """Of all that are loaded."""
        return set(self._loaded)


def _folder(lora_request: LoRARequest) -> Path:
    return resolve_adapter(str(lora_request.lora_path), "lora_path")
