"""Settings as people write them."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_stream import EngineConfig, SamplingParams
from paged_stream.batch.batch_config import BatchConfig
from paged_stream.config import EngineSettings
from paged_stream.setting_hints import HINTS


def test_the_typed_settings_are_the_fields_but_the_model():
    written = {field.name: field.type for field in fields(EngineConfig) if field.name != "model"}
    annotations = EngineSettings.__annotations__
    assert {name: kind.__forward_arg__ for name, kind in annotations.items()} == written


INTEGERS = {
    "block_size": 32,
    "num_sink_tokens": 0,
    "window_size": 100,
    "kv_cache_memory_bytes": 1 << 20,
    "max_num_seqs": 3,
    "max_num_batched_tokens": 100,
    "num_decode_steps": 2,
    "chunk_size": 5,
    "parking_memory_bytes": 0,
    "tensor_parallel_size": 2,
    "seed": 9,
    "num_threads": 1,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_numpy_integers(name):
    config = EngineConfig(model="m", **{name: np.int64(INTEGERS[name])})
    assert config == EngineConfig(model="m", **{name: INTEGERS[name]})
    assert type(getattr(config, name)) is int


def test_every_integer_field_is_tried_above():
    kinds = {field.name for field in fields(EngineConfig) if "int" in str(field.type)}
    assert kinds == INTEGERS.keys()


def test_numpy_switches_and_numbers():
    config = EngineConfig(
        model="m",
        cuda_graphs=np.False_,
        enable_prefix_caching=np.bool_(True),
        gpu_memory_utilization=np.float32(0.5),
        park_after_seconds=np.float64(2),
    )
    assert (config.cuda_graphs, config.enable_prefix_caching) == (False, True)
    assert (config.gpu_memory_utilization, config.park_after_seconds) == (0.5, 2.0)
    assert replace(config, park_after_seconds=float("inf")).park_after_seconds == float("inf")
    assert json.loads(json.dumps(asdict(config)))["cuda_graphs"] is False


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (torch.float32, "float32"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
        ("half", "float16"),
        ("float", "float32"),
    ],
)
def test_dtypes(written, kept):
    assert EngineConfig(model="m", dtype=written).dtype == kept


@pytest.mark.parametrize("written", [torch.int8, torch.float8_e4m3fn, "fp8_e4m3"])
def test_kv_cache_dtypes(written):
    kept = EngineConfig(model="m", kv_cache_dtype=written).kv_cache_dtype
    assert kept == ("int8" if written == torch.int8 else "fp8")


@pytest.mark.parametrize(
    ("written", "meant"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")]
)
def test_dtypes_that_are_nearly_right(written, meant):
    with pytest.raises(ValueError, match=f"got '{written}'; did you mean '{meant}'"):
        EngineConfig(model="m", dtype=written)


def test_devices_of_torch():
    assert EngineConfig(model="m", device=torch.device("cuda", 1)).device == "cuda:1"
    with pytest.raises(ValueError, match="device must be .* got 'mps'"):
        EngineConfig(model="m", device=torch.device("mps"))


@pytest.mark.parametrize("name", ["kv_cache_memory_bytes", "parking_memory_bytes"])
def test_sizes_as_text(name):
    assert getattr(EngineConfig(model="m", **{name: "1.5GiB"}), name) == 3 << 29
    with pytest.raises(ValueError, match=f"{name} must be .* such as '512MiB'.* got 'much'"):
        EngineConfig(model="m", **{name: "much"})


def test_homes_and_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = EngineConfig(model=Path("~/m.gguf"), cache_dir="~/cache", parking_dir=Path("~") / "p")
    assert config.model == str(tmp_path / "m.gguf")
    assert (config.cache_dir, config.parking_dir) == (str(tmp_path / "cache"), str(tmp_path / "p"))
    assert EngineConfig(model="org/name").model == "org/name"
    batch = BatchConfig(input=["~/in", "s3://~/x"], output="~/out", model="m")
    assert batch.input == (str(tmp_path / "in"), "s3://~/x")
    assert batch.output == str(tmp_path / "out")


def test_batches_take_the_same_values():
    batch = BatchConfig(
        input=["in"],
        output="out",
        model="m",
        num_replicas=np.int64(2),
        max_row_bytes="2MiB",
        shard_bytes="1MB",
        engine={"window_size": np.int64(8), "dtype": torch.float32},
    )
    assert (batch.num_replicas, batch.row_limit, batch.shard_bytes) == (2, 2 << 20, 10**6)
    assert (batch.engine_config.window_size, batch.engine_config.dtype) == (8, "float32")
    assert BatchConfig(input="in", output="out", model="m").input == ("in",)
    with pytest.raises(ValueError, match="no setting 'max_model_len': "):
        BatchConfig(input=["in"], output="out", model="m", engine={"max_model_len": 8})


@pytest.mark.parametrize("name", ["cache_dir", "parking_dir"])
def test_what_is_no_folder(name, tmp_path):
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", 3, ""):
        with pytest.raises(ValueError, match=f"{name} must be a folder, got "):
            EngineConfig(model="m", **{name: wrong})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["auto", "float32", torch.bfloat16]),
            "quantization": st.sampled_from(["auto", "int8", None]),
            "max_num_seqs": st.integers(1, 8),
            "max_num_batched_tokens": st.integers(8, 100),
            "chunk_size": st.just(1),
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["auto", "float32"]),
            "quantization": st.sampled_from(["auto", "int4", None]),
            "max_num_batched_tokens": st.integers(8, 100),
        },
    ),
)
def test_replaced_is_as_written_anew(first, then):
    config = replace(EngineConfig(model="m", **first), **then)
    anew = EngineConfig(model="m", **(first | then))
    assert config == anew
    assert config.actual_max_num_seqs == anew.actual_max_num_seqs
    assert config.actual_quantization == anew.actual_quantization


def test_what_follows_from_other_fields():
    config = EngineConfig(model="m", dtype="float32")
    assert (config.quantization, config.actual_quantization) == ("auto", None)
    assert replace(config, dtype="auto").actual_quantization == "auto"
    assert (config.max_num_seqs, config.actual_max_num_seqs) == (None, 64)
    assert replace(config, max_num_batched_tokens=8).actual_max_num_seqs == 8
    assert replace(config, max_num_batched_tokens=8, chunk_size=3).actual_max_num_seqs == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "m", "window-size": 3}, "no setting 'window-size'; did you mean 'window_size'"),
        ({"model": "m", "max_model_len": 3}, "no setting 'max_model_len': .*window_size"),
        ({"model": "m", "window_size": "much"}, "window_size must be an int or None, got 'much'"),
        ({"model": "m", "cuda_graphs": "maybe"}, "cuda_graphs must be a bool, got 'maybe'"),
    ],
)
def test_mappings_that_are_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        EngineConfig.from_mapping(settings)


def test_configs_travel_and_show_what_was_set():
    config = EngineConfig(model="m", window_size=8, dtype=torch.float32, cache_dir=Path("c"))
    assert pickle.loads(pickle.dumps(config)) == config
    assert repr(config) == "EngineConfig(model='m', cache_dir='c', dtype='float32', window_size=8)"
    assert eval(repr(config)) == config
    params = SamplingParams(temperature=0.5, stop="x", stop_token_ids=np.array([3]))
    assert repr(params) == "SamplingParams(temperature=0.5, stop=('x',), stop_token_ids=(3,))"
    assert repr(SamplingParams()) == "SamplingParams()"


def test_hints_are_for_names_that_there_are_not():
    assert not HINTS.keys() & {field.name for field in fields(EngineConfig)}


def test_a_folder_may_be_any_path_like():
    class Folder(os.PathLike):
        def __fspath__(self):
            return "~"

    assert EngineConfig(model="m", cache_dir=Folder()).cache_dir == os.path.expanduser("~")
