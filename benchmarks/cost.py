"""What a model has to read and compute: bytes and floating point operations, for the floors."""

from __future__ import annotations

from paged_stream import LLMEngine
from paged_stream.executor.local import LocalExecutor
from paged_stream.layers.embedding import Embedding
from paged_stream.models.decoder import Decoder
from paged_stream.models.model_config import ModelConfig


def decoder(engine: LLMEngine) -> Decoder:
    """The model of an engine that computes in this process."""
    assert isinstance(engine.core.executor, LocalExecutor)
    return engine.core.executor._worker._runner.model


def weight_bytes(engine: LLMEngine) -> int:
    """Bytes of weights that every step reads, as they lie in memory: packed, quantised or not.

    Of a table of embeddings only single rows are read; the head, which a tied one becomes too, is
    read as a whole.
    """
    model = decoder(engine)
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        if isinstance(module, Embedding):
            table = module.packed_weight if module.weight is None else module.weight
            if table is not model.head.packed_weight:
                del tensors[table.data_ptr()]
    return sum(tensors.values())


def kv_bytes_per_token(engine: LLMEngine) -> float:
    """Bytes of K and V of one token over all layers, as the cache holds them."""
    return engine.cache_plan.block_bytes / engine.config.block_size


def linear_flops(config: ModelConfig, num_tokens: int, num_sampled: int) -> float:
    """Operations of the projections of ``num_tokens``, of which ``num_sampled`` reach the head."""
    head = config.vocab_size * config.hidden_size
    tables = head if config.tie_word_embeddings else 2 * head
    tables += config.learned_positions * config.hidden_size
    return 2.0 * ((config.num_parameters - tables) * num_tokens + head * num_sampled)


def attention_flops(config: ModelConfig, num_visible: float) -> float:
    """Operations of scores and weighted sums over all layers; ``num_visible`` keys in all, counted
    once for each token that sees them."""
    return 4.0 * config.num_layers * config.query_size * num_visible
