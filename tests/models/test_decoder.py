"""The paged decoder against transformers' LlamaForCausalLM, full attention, any chunking."""

from __future__ import annotations

import pytest
import torch

from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.attention.native import NativeBackend
from paged_stream.models.decoder import Decoder
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from paged_stream.ops import FULL_ATTENTION, SequenceColumns, lay_out_batch
from paged_stream.worker.kv_cache import KVCache
from tests.models.checkpoints import load_decoder

BLOCK_SIZE = 4


def batch_of(tables: list[list[int]], start: int, chunks: list[list[int]]) -> ForwardBatch:
    """A step that runs a chunk of each sequence, all from position ``start`` on."""
    count, widths = len(tables), [len(table) for table in tables]
    columns = SequenceColumns(
        lengths=[len(chunk) for chunk in chunks],
        starts=[start] * count,
        num_sink_tokens=[0] * count,
        window_size=[FULL_ATTENTION] * count,
        window_floor=[0] * count,
        ring_blocks=widths,
        row_lengths=widths,
    )
    token_ids, block_rows = (
        torch.tensor([number for row in rows for number in row], dtype=torch.int32)
        for rows in (chunks, tables)
    )
    tensors, has_gap = lay_out_batch(token_ids, block_rows, columns, BLOCK_SIZE)
    return ForwardBatch(tensors=tensors, has_gap=has_gap, host=tensors)


@torch.inference_mode()
def paged_logits(decoder: Decoder, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
    """Logits of every prompt token, all prompts side by side, ``chunk`` tokens of each a step."""
    config = decoder.config
    width = -(-max(map(len, prompts)) // BLOCK_SIZE)
    # Blocks of the sequences alternate, so that neither is contiguous in the cache.
    tables = [list(range(b, width * len(prompts), len(prompts))) for b in range(len(prompts))]
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=width * len(prompts),
        num_kv_heads=config.num_kv_heads,
        block_size=BLOCK_SIZE,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    for start in range(0, max(map(len, prompts)), chunk):
        live = [b for b, prompt in enumerate(prompts) if start < len(prompt)]
        ids = [prompts[b][start : start + chunk] for b in live]
        hidden = decoder(batch_of([tables[b] for b in live], start, ids), cache.layers)
        parts = decoder.compute_logits(hidden).split([len(part) for part in ids])
        for b, part in zip(live, parts, strict=True):
            logits[b].append(part)
    return [torch.cat(parts) for parts in logits]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, id="gqa"),
        pytest.param({"num_key_value_heads": 1, "tie_word_embeddings": True}, id="mqa-tied"),
        pytest.param(
            {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}, id="bias"
        ),
        pytest.param({"head_dim": 16}, id="wide-heads"),
        pytest.param(
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
            id="llama3-rope",
        ),
    ],
)
def test_logits_equal_transformers(tiny_llama, save, overrides):
    oracle = tiny_llama(**overrides)
    decoder = load_decoder(save(oracle))
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(300, (n,), generator=generator).tolist() for n in (13, 9, 22)]
    for chunk in (22, 5, 1):
        for prompt, logits in zip(prompts, paged_logits(decoder, prompts, chunk), strict=True):
            with torch.no_grad():
                expected = oracle(torch.tensor([prompt])).logits[0]
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_parameters_are_of_the_dtype_asked_for(tiny_llama, save):
    files = resolve_model(save(tiny_llama(attention_bias=True)))
    decoder = load_model(files, load_config(files), torch.bfloat16, "cpu", NativeBackend())
    for name, parameter in decoder.named_parameters():
        # An RMSNorm multiplies in float32.
        assert parameter.dtype == (torch.float32 if "norm" in name else torch.bfloat16), name
        assert not parameter.requires_grad
