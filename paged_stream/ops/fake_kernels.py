"""Shapes and dtypes of what each op returns, for tracing without data; `ops` describes them."""

from __future__ import annotations

import torch


@torch.library.register_fake("paged_stream::rotary_and_cache")
def _(query, *rest):
    return None


@torch.library.register_fake("paged_stream::paged_attention")
def _(query, *rest):
    return query.new_empty(query.shape)


@torch.library.register_fake("paged_stream::attention_layer")
def _(residual, *rest):
    return torch.empty_like(residual)


@torch.library.register_fake("paged_stream::gated_mlp")
def _(residual, *rest):
    return torch.empty_like(residual)


@torch.library.register_fake("paged_stream::decoder_layers")
def _(residual, *rest):
    return torch.empty_like(residual)


@torch.library.register_fake("paged_stream::lay_out_batch")
def _(token_ids, block_rows, sequences, block_size):
    num_tokens, num_sequences = token_ids.shape[0], sequences.shape[1]
    width = torch.library.get_ctx().new_dynamic_size()
    per_token = [sequences.new_empty(num_tokens) for _ in range(4)]
    return (
        [
            *per_token,
            block_rows.new_empty(num_sequences, width),
            block_rows.new_empty(num_sequences + 1),
            sequences.new_empty(num_sequences),
            block_rows.new_empty(num_sequences),
            block_rows.new_empty(num_sequences),
            sequences.new_empty(num_sequences),
            block_rows.new_empty(num_sequences),
        ],
        False,
    )


@torch.library.register_fake("paged_stream::gather_blocks")
def _(k_cache, v_cache, slot_mapping, rotary, interleaved):
    shape = (slot_mapping.shape[0], k_cache.shape[1], k_cache.shape[3])
    return k_cache.new_empty(shape), v_cache.new_empty(shape)


@torch.library.register_fake("paged_stream::scatter_blocks")
def _(key, value, k_cache, v_cache, slot_mapping, rotary, interleaved):
    return None


@torch.library.register_fake("paged_stream::rotary_reindex")
def _(k_cache, slot_mapping, rotary, interleaved):
    return None


@torch.library.register_fake("paged_stream::copy_blocks")
def _(kv_cache, block_mapping):
    return None


@torch.library.register_fake("paged_stream::pack_linear_weight")
def _(weight):
    step = 4 // weight.element_size()
    return weight.new_empty((-(-weight.shape[0] // 16), weight.shape[1] // step, 16, step))


@torch.library.register_fake("paged_stream::pack_quantized_weight")
def _(out, blocks, first_row, rows, in_features, formats):
    return None


@torch.library.register_fake("paged_stream::embedding_rows")
def _(ids, packed_weight, in_features, is_bfloat16):
    dtype = torch.bfloat16 if is_bfloat16 else torch.float32
    return packed_weight.new_empty((ids.shape[0], in_features), dtype=dtype)


@torch.library.register_fake("paged_stream::linear")
def _(input, packed_weight, bias, out_features, float_output):
    dtype = torch.float32 if float_output else input.dtype
    return input.new_empty((input.shape[0], out_features), dtype=dtype)


@torch.library.register_fake("paged_stream::add_adapters")
def _(out, *rest):
    return None


@torch.library.register_fake("paged_stream::add_rms_norm")
def _(residual, delta, weight, eps):
    return torch.empty_like(residual)


@torch.library.register_fake("paged_stream::silu_and_mul")
def _(gate_up):
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


@torch.library.register_fake("paged_stream::rotary_table")
def _(positions, inv_freq, scaling):
    shape = (positions.shape[0], 2 * inv_freq.shape[0])
    return positions.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("paged_stream::advance_decode")
def _(sampled, *rest):
    return None


@torch.library.register_fake("paged_stream::sample_tokens")
def _(logits, sampling, positions):
    return logits.new_empty(logits.shape[0], dtype=torch.int64)
