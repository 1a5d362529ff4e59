"""Typed access to ``torch.ops.paged_stream``: one function per op.

Shapes: T tokens in the batch, B sequences, N slots. A cache is ``[num_blocks, num_kv_heads,
block_size, row_size]``, its inner three dimensions contiguous; ``slot = block_id * block_size +
offset``. Heads of one call share a dtype, float32 or bfloat16 (on CUDA also float16), and head_dim
is a multiple of 8 up to 256. The cache has the same dtype, and rows of head_dim elements; or it is
int8, and a row is head_dim elements and the 4 bytes of a float32, their scale; or, on CUDA, it is
float8_e4m3fn, and elements are rounded as they are, beyond 448 to that. Arguments that break a
contract raise RuntimeError naming the op, the argument, what was expected and what came. On CUDA
nothing waits for the device to look at numbers: slots and blocks that do not exist are skipped.
"""

from paged_stream.ops.adapter import Adapter, LowRank, Projection
from paged_stream.ops.add_adapters import add_adapters
from paged_stream.ops.add_rms_norm import add_rms_norm
from paged_stream.ops.advance_decode import advance_decode
from paged_stream.ops.attention_layer import (
    AttentionLayer,
    AttentionWeights,
    HeadShape,
    attention_layer,
)
from paged_stream.ops.batch import FULL_ATTENTION, BatchTensors
from paged_stream.ops.build_version import build_version
from paged_stream.ops.copy_blocks import copy_blocks
from paged_stream.ops.cpu_isa import cpu_isa, set_cpu_isa
from paged_stream.ops.decoder_layers import DecoderLayers, decoder_layers
from paged_stream.ops.embedding_rows import embedding_rows
from paged_stream.ops.gated_mlp import GatedMLP, MLPWeights, gated_mlp
from paged_stream.ops.gather_blocks import gather_blocks
from paged_stream.ops.lay_out_batch import SequenceColumns, lay_out_batch
from paged_stream.ops.library import has_cuda
from paged_stream.ops.linear import linear
from paged_stream.ops.pack_linear_weight import pack_linear_weight
from paged_stream.ops.pack_quantized_weight import pack_quantized_weight
from paged_stream.ops.paged_attention import paged_attention
from paged_stream.ops.quantized_weight_bytes import quantized_weight_bytes
from paged_stream.ops.rotary_and_cache import rotary_and_cache
from paged_stream.ops.rotary_reindex import rotary_reindex
from paged_stream.ops.rotary_table import rotary_table
from paged_stream.ops.sample_tokens import NO_TOKEN, SamplingTensors, sample_tokens
from paged_stream.ops.scatter_blocks import scatter_blocks
from paged_stream.ops.scoring import Scoring
from paged_stream.ops.silu_and_mul import silu_and_mul

__all__ = [
    "FULL_ATTENTION",
    "NO_TOKEN",
    "Adapter",
    "AttentionLayer",
    "AttentionWeights",
    "BatchTensors",
    "DecoderLayers",
    "GatedMLP",
    "HeadShape",
    "LowRank",
    "MLPWeights",
    "Projection",
    "SamplingTensors",
    "Scoring",
    "SequenceColumns",
    "add_adapters",
    "add_rms_norm",
    "advance_decode",
    "attention_layer",
    "build_version",
    "copy_blocks",
    "cpu_isa",
    "decoder_layers",
    "embedding_rows",
    "gated_mlp",
    "gather_blocks",
    "has_cuda",
    "lay_out_batch",
    "linear",
    "pack_linear_weight",
    "pack_quantized_weight",
    "paged_attention",
    "quantized_weight_bytes",
    "rotary_and_cache",
    "rotary_reindex",
    "rotary_table",
    "sample_tokens",
    "scatter_blocks",
    "set_cpu_isa",
    "silu_and_mul",
]
