"""Loading a file that runs in its own blocks takes hardly more memory than the file: what has been
packed of a matrix is no longer there as it came."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from paged_stream.layers.blocks import BLOCK_FORMATS
from tests.models.gguf_files import add_vocabulary

HIDDEN, INNER, VOCAB, LAYERS, KV = 1024, 2816, 32000, 2, 256
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KV, HIDDEN),
    "attn_v": (KV, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}

# Imports cost the same for every model. What is counted is what comes on top of them.
PROGRAM = """
import gc, sys, torch
from pathlib import Path
from paged_stream.attention.native import NativeBackend
from paged_stream.models.formats import gguf, gguf_shard
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model

def kib(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])

files = resolve_model(sys.argv[1], cache_dir=sys.argv[2])
config = load_config(files)
gc.collect()
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
decoder = load_model(files, config, torch.bfloat16, "cpu", NativeBackend(), "auto")
decoder.pack_weights()
print(1024 * (kib("VmHWM") - before))
"""


def write_large(path: Path) -> None:
    """A file of 50 MB as llama.cpp's Q4_K_M is, with random blocks."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(8)
    writer.add_head_count_kv(KV * 8 // HIDDEN)
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer, VOCAB, sentencepiece=False)
    matrices = {"token_embd.weight": (VOCAB, HIDDEN), "output.weight": (VOCAB, HIDDEN)}
    norms = ["output_norm.weight"]
    for layer in range(LAYERS):
        matrices |= {f"blk.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
        norms += [f"blk.{layer}.{name}.weight" for name in ("attn_norm", "ffn_norm")]
    for name, (rows, columns) in matrices.items():
        kind = (
            Kind.Q6_K if any(part in name for part in ("attn_v", "ffn_d", "output")) else Kind.Q4_K
        )
        size, num_bytes, scales = BLOCK_FORMATS[kind.name]
        blocks = np.random.default_rng(0).integers(
            0, 256, (rows, columns // size, num_bytes), dtype=np.uint8
        )
        blocks[..., scales] = 0
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)
    for name in norms:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_hardly_more_than_the_file(tmp_path):
    path = tmp_path / "large.gguf"
    write_large(path)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) < 1.2 * path.stat().st_size
