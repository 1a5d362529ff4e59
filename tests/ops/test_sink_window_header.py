"""Holds ``csrc/include/sink_window.h`` and ``scheduler/sink_window.py`` together."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream.scheduler.sink_window import SinkWindow

INCLUDE = Path(__file__).parents[2] / "csrc" / "include"
SOURCE = """
#include "sink_window.h"
extern "C" void evaluate(const int64_t* in, int64_t* out) {
  const paged_stream::SinkWindow window{in[0], in[1], in[8]};
  const int64_t key = in[2], query = in[3], block_size = in[4], chunk = in[5], block = in[6];
  const int64_t local_window = in[7];
  *out++ = window.is_visible(key, query);
  *out++ = window.window_start(query);
  *out++ = window.is_visible(key, query, local_window);
  *out++ = window.window_start(query, local_window);
  *out++ = window.sink_start(query, local_window);
  *out++ = window.num_visible(query);
  *out++ = window.sink_position(query);
  *out++ = window.num_sink_blocks(block_size);
  const int64_t ring_blocks = window.is_full() ? in[6] + 1 : window.ring_blocks(chunk, block_size);
  *out++ = ring_blocks;
  *out++ = window.is_full() ? 0 : window.max_chunk(ring_blocks, block_size);
  *out++ = window.column(block, ring_blocks, block_size);
}
"""
POSITIONS = st.one_of(st.integers(0, 300), st.integers(0, 2**45))


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("sink_window")
    (folder / "mirror.cpp").write_text(SOURCE)
    command = [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{INCLUDE}", "mirror.cpp"]
    subprocess.run([*command, "-o", "mirror.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "mirror.so")).evaluate


@settings(max_examples=500, derandomize=True)
@given(
    sinks=st.integers(0, 60),
    window_size=st.one_of(st.none(), st.integers(1, 300), st.just(2**31 - 2)),
    key=POSITIONS,
    query=POSITIONS,
    depth=st.one_of(st.none(), st.integers(0, 400)),
    block_size=st.integers(1, 64),
    chunk=st.integers(1, 100),
    block=st.one_of(st.integers(0, 40), st.integers(0, 2**40)),
    local_window=st.one_of(st.none(), st.integers(1, 400), st.integers(1, 2**40)),
)
def test_header_equals_python(
    evaluate, sinks, window_size, key, query, depth, block_size, chunk, block, local_window
):
    full = window_size is None
    # The floor lies `depth` below the query, if there is room.
    floor = 0 if full or depth is None or query < sinks else max(sinks, query - depth)
    window = SinkWindow(0 if full else sinks, window_size, floor)
    ring_blocks = block + 1 if full else window.ring_blocks(chunk, block_size)
    expected = [
        window.is_visible(key, query),
        window.window_start(query),
        window.is_visible(key, query, local_window),
        window.window_start(query, local_window),
        window.sink_start(query, local_window),
        window.num_visible(query),
        window.sink_position(query),
        window.num_sink_blocks(block_size),
        ring_blocks,
        0 if full else window.max_chunk(ring_blocks, block_size),
        window.column(block, ring_blocks, block_size),
    ]
    arguments = [window.num_sink_tokens, 2**31 - 1 if full else window_size]
    arguments += [key, query, block_size, chunk, block]
    arguments += [2**63 - 1 if local_window is None else local_window, floor]
    out = (ctypes.c_int64 * len(expected))()
    evaluate((ctypes.c_int64 * len(arguments))(*arguments), out)
    assert list(out) == expected
