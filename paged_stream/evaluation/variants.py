"""What a query sees: the attention patterns that the StreamingLLM paper compares, and its
ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MODES = ("dense", "window", "recompute", "streaming")
SINK_COUNTS = (0, 1, 2, 4, 8)
CACHE_SIZES = (256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a query sees, named as in the paper: sinks + window, both counted in visible tokens.

    Args:
        window_size: the query's own token included; ``None`` sees everything (dense).
        recompute: the last ``window_size`` tokens are computed anew for every prediction, as a
            text of their own, and nothing else is seen.
        line_break_sinks: the stream begins with that many line breaks instead of its own tokens.
    """

    name: str
    num_sink_tokens: int = 0
    window_size: int | None = None
    recompute: bool = False
    line_break_sinks: bool = False

    @property
    def cache_size(self) -> int | None:
        """Most tokens that a query sees; ``None`` for all."""
        return None if self.window_size is None else self.num_sink_tokens + self.window_size

    @classmethod
    def dense(cls) -> Variant:
        return cls(name="dense")

    @classmethod
    def streaming(cls, num_sink_tokens: int, window_size: int) -> Variant:
        return cls(
            name=f"{num_sink_tokens}+{window_size}",
            num_sink_tokens=num_sink_tokens,
            window_size=window_size,
        )

    @classmethod
    def recomputed(cls, cache_size: int) -> Variant:
        return cls(name=f"recompute {cache_size}", window_size=cache_size, recompute=True)

    @classmethod
    def line_breaks(cls, num_sink_tokens: int, window_size: int) -> Variant:
        return cls(
            name=f'{num_sink_tokens}"\\n"+{window_size}',
            num_sink_tokens=num_sink_tokens,
            window_size=window_size,
            line_break_sinks=True,
        )


def modes(names: Sequence[str], num_sink_tokens: int, window_size: int) -> list[Variant]:
    """The paper's four modes at one cache size, those of them that ``names`` lists.

    Raises:
        ValueError: no such mode, or sizes out of range.
    """
    check_sizes(num_sink_tokens, window_size)
    cache = num_sink_tokens + window_size
    variants = {
        "dense": Variant.dense(),
        "window": Variant.streaming(0, cache),
        "recompute": Variant.recomputed(cache),
        "streaming": Variant.streaming(num_sink_tokens, window_size),
    }
    for name in names:
        if name not in variants:
            raise ValueError(f"modes must be some of {', '.join(MODES)}, got {name!r}")
    return [variants[name] for name in names]


def ablation(
    kind: str,
    num_sink_tokens: int,
    window_size: int,
    cache_sizes: Sequence[int] = CACHE_SIZES,
) -> list[Variant]:
    """The variants of one of the paper's ablations: ``sinks``, ``cache`` or ``linebreak``.

    Raises:
        ValueError: no such ablation, or sizes out of range.
    """
    check_sizes(num_sink_tokens, window_size)
    cache = num_sink_tokens + window_size
    if kind == "sinks":
        if cache <= max(SINK_COUNTS):
            raise ValueError(
                f"num_sink_tokens + window_size must be more than {max(SINK_COUNTS)} for the "
                f"ablation of sinks, got {cache}"
            )
        return [Variant.streaming(sinks, cache - sinks) for sinks in SINK_COUNTS]
    if kind == "cache":
        for size in cache_sizes:
            if size <= num_sink_tokens:
                raise ValueError(
                    f"cache_sizes must be more than num_sink_tokens={num_sink_tokens}, got {size}"
                )
        return [Variant.streaming(num_sink_tokens, size - num_sink_tokens) for size in cache_sizes]
    if kind == "linebreak":
        return [
            Variant.streaming(0, cache),
            Variant.streaming(num_sink_tokens, window_size),
            Variant.line_breaks(num_sink_tokens, window_size),
        ]
    raise ValueError(f"ablation must be one of sinks, cache, linebreak, got {kind!r}")


def check_sizes(num_sink_tokens: int, window_size: int) -> None:
    if num_sink_tokens < 0:
        raise ValueError(f"num_sink_tokens must be >= 0, got {num_sink_tokens}")
    if window_size < 1:
        raise ValueError(f"window_size must be >= 1, got {window_size}")
