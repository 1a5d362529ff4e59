"""The paged decoder against transformers' LlamaForCausalLM, full attention, any chunking."""

from __future__ import annotations

import pytest
import torch

from paged_stream.attention.metadata import AttentionMetadata
from paged_stream.attention.native import NativeBackend
from paged_stream.models.decoder import Decoder
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from paged_stream.worker.kv_cache import KVCache
from tests.models.checkpoints import load_decoder

BLOCK_SIZE = 4
INT32_MAX = 2**31 - 1


def metadata_for(tables: list[list[int]], starts: list[int], stops: list[int]) -> AttentionMetadata:
    """Describe a step that runs positions ``start`` to ``stop`` of each sequence."""
    batch = len(tables)
    spans = [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
    positions = torch.tensor([position for span in spans for position in span])
    slots = [
        table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for table, span in zip(tables, spans, strict=True)
        for position in span
    ]
    loc = torch.tensor([0, *(len(span) for span in spans)]).cumsum(0).to(torch.int32)
    return AttentionMetadata(
        query_start_loc=loc,
        seq_lens=torch.tensor(stops),
        num_sink_tokens=torch.zeros(batch, dtype=torch.int32),
        window_size=torch.full((batch,), INT32_MAX, dtype=torch.int32),
        window_floor=torch.zeros(batch, dtype=torch.int64),
        block_table=torch.tensor(tables, dtype=torch.int32),
        ring_blocks=torch.full((batch,), len(tables[0]), dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
        positions=positions,
        sink_positions=None,
    )


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
        stops = [min(start + chunk, len(prompts[b])) for b in live]
        ids = [prompts[b][start:stop] for b, stop in zip(live, stops, strict=True)]
        metadata = metadata_for([tables[b] for b in live], [start] * len(live), stops)
        hidden = decoder(torch.tensor(sum(ids, [])), metadata, cache.layers)
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
