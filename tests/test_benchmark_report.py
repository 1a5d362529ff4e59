"""Figures on pages are written from result files; here from files with made-up figures."""

from __future__ import annotations

import pytest

from benchmarks.harness import read_results, write_results
from benchmarks.report import BEGIN, END, insert, pages, render, summary

DECODE = {"model": "m", "dtype": "bfloat16", "batch": 4, "prompt": 64, "new_tokens": 48}
PEER = {
    "version": "0.1",
    "ours": "int4",
    "task": "decode",
    "batch": 1,
    "prompt": 2048,
    "tokens_per_second": 90.0,
    "peer_tokens_per_second": 60.0,
    "ratio": 1.5,
}


@pytest.fixture
def results(tmp_path):
    ours = DECODE | {"engine": "ours", "tokens_per_second": 1500.0, "floor_fraction": 0.755}
    int4 = ours | {"engine": "ours int4", "tokens_per_second": 3000.0}
    theirs = DECODE | {"engine": "transformers", "tokens_per_second": 500.0}
    write_results("decode", [ours, ours], tmp_path)
    write_results("decode", [ours, int4, theirs], tmp_path)  # in place of the run before
    write_results("peer_vllm", [PEER | {"peer": "vLLM"}], tmp_path)
    write_results("peer_llama_cpp", [PEER | {"peer": "llama.cpp", "prompt": 64}], tmp_path)
    return read_results(tmp_path)


def test_a_run_replaces_the_one_before(results):
    assert [row["engine"] for row in results["decode"]] == ["ours", "ours int4", "transformers"]


def test_tables(results):
    lines = render(results).splitlines()
    assert "| 4, 64 tokens | bfloat16 | 1,500 tok/s | 76 % | 500 tok/s | 3.0 |" in lines
    assert "| 4, 64 tokens | int4 | 3,000 tok/s | 76 % | 500 tok/s | 6.0 |" in lines
    vllm = "| decode, batch 1, 2,048 tokens | int4 | 90 tok/s | vLLM (0.1) | 60 tok/s | 1.50 |"
    llama = "| decode, batch 1, 64 tokens | int4 | 90 tok/s | llama.cpp (0.1) | 60 tok/s | 1.50 |"
    assert lines.index(llama) == lines.index(vllm) + 1  # one table for all peers
    assert not any("bench_prefill" in line for line in lines)  # of which there is no file


def test_memory_of_a_start(tmp_path):
    row = {"answer_bytes": 350 << 20, "kv_resident_bytes": 120 << 20, "kv_reserved_bytes": 4 << 30}
    write_results("start", [row | {"model": "m", "load_seconds": 1.25}], tmp_path)
    text = " ".join(render(read_results(tmp_path)).split())
    assert "350 MiB over what importing torch takes, 120 of 4,096 MiB of KV cache" in text


def test_perplexities(tmp_path):
    case = {"model": "m", "dtype": "float32", "text": "emma", "case": "4+60", "figure": 20.0}
    rows = [
        case | {"tokens": tokens, "perplexity": perplexity, "difference_percent": -0.5}
        for tokens, perplexity in (("0-512", 30.0), ("0-1024", 19.9), ("512-1024", 15.0))
    ]
    write_results("sink_effect_smollm2-135m-instruct", rows, tmp_path)
    plain = {"model": "m", "text": "emma", "tokens": 2000, "num_sink_tokens": 4, "window_size": 60}
    rows = [
        plain | {"variant": variant, "perplexity": perplexity, "difference_percent": difference}
        for variant, perplexity, difference in (
            ("bfloat16", 35.0, 0.0),
            ("kv_cache_dtype=int8", 35.07, 0.2),
        )
    ]
    write_results("quantized_perplexity_smollm2-135m-instruct", rows, tmp_path)
    lines = render(read_results(tmp_path)).splitlines()
    assert [line for line in lines if line.startswith("| m |")] == [
        "| m | emma, 1,024 tokens | 4+60 | 19.90 | 20.00 | -0.50 % |"  # the longest from the start
    ]
    assert "| nothing, all in bfloat16 | 35.000 |  |" in lines
    assert "| K and V in int8 | 35.070 | +0.20 % |" in lines


def test_only_what_is_between_the_markers_changes(results):
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    part = render(results)
    written = insert(page, part)
    assert written == f"before\n{BEGIN}\n\n{part}\n\n{END}\nafter\n"
    assert insert(written, part) == written


@pytest.mark.parametrize("page", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN}"])
def test_a_page_without_its_markers_is_left_alone(page):
    with pytest.raises(ValueError, match="must have these two lines once"):
        insert(page, "text")


def test_the_pages_say_what_the_results_say():
    for page, text in pages(read_results()).items():
        assert page.read_text() == text, "run `python -m benchmarks.report`"


def test_the_summary_has_each_peer_at_its_best(tmp_path):
    slow = PEER | {"ours": "auto", "prompt": 64, "peer": "llama.cpp, Q4_1"}
    fast = slow | {"peer": "llama.cpp, Q4_1, flash attention", "peer_tokens_per_second": 70.0}
    write_results("peer_llama_cpp", [slow, fast], tmp_path)
    lines = summary(read_results(tmp_path)).splitlines()
    assert lines[2:] == [
        "| decode, batch 1, weights in the file's 4 bits | 90 tokens/s | llama.cpp 70 |"
    ]
