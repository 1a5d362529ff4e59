"""Models of well-known shapes with random weights, made on the device, and steps to run on them."""

from __future__ import annotations

import random
import tempfile
from array import array
from functools import lru_cache
from typing import Any

import torch
from transformers import LlamaConfig

from paged_stream.attention.native import NativeBackend
from paged_stream.models.decoder import Decoder
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.scheduler.output import ScheduledSequence, SchedulerOutput
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.worker.cuda_graphs import CudaRecorder, GraphLimits
from paged_stream.worker.kv_cache import KVCache
from paged_stream.worker.model_runner import ModelRunner
from paged_stream.worker.parking import ParkedStore

NUM_SINK_TOKENS = 4
BLOCK_SIZE = 16
NUM_STEPS = 8  # of one launch
_COMMON: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llama-2-13b": {
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "tiny": {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}


@lru_cache(maxsize=1)
@torch.inference_mode()
def random_model(shape: str, device: torch.device) -> Decoder:
    """A bfloat16 decoder of a shape of `SHAPES`. The last one is kept."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**_COMMON, **SHAPES[shape]).save_pretrained(folder)
        config = load_config(resolve_model(folder))
    model = Decoder(config, NativeBackend(), dtype=torch.bfloat16, device=device)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02)
    model.pack_weights()
    return model.eval()


def weight_bytes(model: Decoder) -> int:
    """What a step reads of the weights: all but the embeddings of other tokens."""
    config = model.config
    return 2 * (config.num_parameters - config.vocab_size * config.hidden_size)


def kv_bytes(model: Decoder, visible: int) -> int:
    """What a decode step reads of K and V for each stream."""
    return visible * model.config.kv_bytes_per_token(torch.bfloat16)


def window_of(visible: int) -> SinkWindow:
    return SinkWindow(NUM_SINK_TOKENS, visible - NUM_SINK_TOKENS)


def blocks_of(visible: int, chunk: int = 1) -> int:
    window = window_of(visible)
    return window.num_sink_blocks(BLOCK_SIZE) + window.ring_blocks(chunk, BLOCK_SIZE)


def make_runner(
    model: Decoder, num_blocks: int, *, max_num_seqs: int = 1, graph_width: int = 0
) -> ModelRunner:
    """A runner with a cache of its own, whose K and V are random.

    Args:
        graph_width: columns of the block tables of recorded steps; 0 records none.
    """
    config, device = model.config, model.embedding.device
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks + 1,
        num_kv_heads=config.num_kv_heads,
        block_size=BLOCK_SIZE,
        head_dim=config.head_dim,
        dtype=torch.bfloat16,
        device=device,
    )
    for layer in cache.tensor:
        layer.normal_()
    runner = ModelRunner(model, cache, ParkedStore(0), BLOCK_SIZE)
    if graph_width:
        limits = GraphLimits(
            num_rows=max_num_seqs,
            table_width=graph_width,
            num_steps=NUM_STEPS,
            padding_block=num_blocks,
            block_size=BLOCK_SIZE,
        )
        runner.record_graphs(limits, CudaRecorder())
    return runner


def step_of(
    num_seqs: int, visible: int, position: int, *, chunk: int = 1, num_steps: int = 1
) -> SchedulerOutput:
    """Streams that all compute ``chunk`` tokens from ``position`` on, and sample; their blocks lie
    where chance has put them."""
    blocks = blocks_of(visible, chunk)
    ids = list(range(num_seqs * blocks))
    random.Random(0).shuffle(ids)
    window, params = window_of(visible), SamplingParams(temperature=0.0, ignore_eos=True)
    return SchedulerOutput(
        tuple(
            ScheduledSequence(
                seq_id=index,
                token_ids=array("i", [index % 90 + 1] * chunk),
                num_computed_tokens=position,
                num_prompt_tokens=1,
                next_token_id=-1,
                block_row=array("i", ids[index * blocks : (index + 1) * blocks]),
                ring_blocks=blocks - window.num_sink_blocks(BLOCK_SIZE),
                sink_window=window,
                sampling_params=params,
                stop_token_ids=(),
                seed=0,
                max_new_tokens=num_steps,
                history=array("i"),
            )
            for index in range(num_seqs)
        ),
        num_steps,
    )
