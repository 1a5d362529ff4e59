"""What the numbers of a config.json can be, looked at before anything is made of them.

A model's lists have an entry for each layer, and transformers makes some of them from the numbers
alone. The limits are far above every model that there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from paged_stream.system.short_text import short

_LAYERS, _HEADS, _WIDTH, _TOKENS, _LENGTH = 1 << 12, 1 << 14, 1 << 22, 1 << 26, 1 << 40
# By every name that a family's configuration class takes.
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv"), _HEADS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), _WIDTH),
    **dict.fromkeys(("head_dim", "rotary_dim", "kv_n_heads", "num_labels"), _HEADS),
    **dict.fromkeys(("vocab_size",), _TOKENS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), _LENGTH),
}
_FRACTIONS = ("partial_rotary_factor", "rotary_pct")
_MOST_ITEMS = 1 << 16
_LONGEST_DTYPE = 40  # characters


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse numbers that no model has.

    Args:
        fields: of config.json, or as such a file would have them.

    Raises:
        ValueError: names the field.
    """
    for name, value in _all_fields(fields):
        if name in _MOST and value is not None:
            if type(value) is not int or not 1 <= value <= _MOST[name]:
                raise ValueError(
                    f"{name} must be an integer in [1, {_MOST[name]}], got {short(value)}"
                )
        elif name in _FRACTIONS and value is not None:
            if not _is_number(value) or not 0 < value <= 1:
                raise ValueError(f"{name} must be a number in (0, 1], got {short(value)}")
        elif name in ("dtype", "torch_dtype") and value is not None:
            if not isinstance(value, str) or len(value) > _LONGEST_DTYPE:
                raise ValueError(f"{name} must be the name of a dtype, got {short(value)}")
        elif _is_number(value) and not abs(value) < 2**63:  # NaN is not less either
            raise ValueError(f"{name} must be below 2^63 and finite, got {short(value)}")
        elif isinstance(value, list) and len(value) > _MOST_ITEMS:
            raise ValueError(f"{name} must have at most {_MOST_ITEMS} entries, got {len(value)}")
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        read_token_ids(name, fields.get(name))


def _all_fields(fields: Mapping[str, Any], depth: int = 3) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        yield name, value
        if isinstance(value, Mapping) and depth:
            yield from _all_fields(value, depth - 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_token_ids(name: str, value: Any) -> tuple[int, ...]:
    """The ids of a field that has one, a list of them, or none.

    Raises:
        ValueError: it has something else; names the field.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in values:
        if type(token_id) is not int:
            raise ValueError(f"{name} must be an integer or a list of integers, got {short(value)}")
    return tuple(values)
