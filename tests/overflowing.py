"""A model whose numbers overflow where it reads one token, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.conftest import save_tokenizer
from tests.reference import tiny_llama


def save_overflowing(folder: Path, token_id: int | None) -> Path:
    """Save the model, with a tokenizer; without a token, nothing overflows and all else is equal.

    The last channel is the token's alone, and makes the last layer multiply 1e25 by 1e25. So K and
    V stay finite, and only logits right behind the token are not.
    """
    model = tiny_llama(0, eos_token_id=0)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, -1] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[-1] = 0
            layer.mlp.down_proj.weight[-1] = 0
        if token_id is not None:
            model.model.embed_tokens.weight[token_id, -1] = 3
            last = model.model.layers[-1].mlp
            last.gate_proj.weight[0, -1] = last.up_proj.weight[0, -1] = 1e25
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
