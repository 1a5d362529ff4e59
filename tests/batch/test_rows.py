"""Rows through an engine, without Ray: what they get, and that nobody waits for the slowest."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import parquet

from paged_stream import LLM, SamplingParams
from paged_stream.batch import progress
from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.outcome import ErrorBudget
from paged_stream.batch.plan import make_plan
from paged_stream.batch.progress import BatchProgress
from paged_stream.batch.replicas import Replicas, share_cluster
from paged_stream.batch.row_runner import row_seed
from paged_stream.batch.tables import column_types
from tests.batch.corpora import ENGINE, config, errors, outputs, run_here, texts, write_lines
from tests.overflowing import save_overflowing


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **ENGINE, enable_prefix_caching=False)


def expected_texts(llm, rows, prompts):
    """What `LLM` makes of the prompts, with the rows' own seeds."""
    params = [
        SamplingParams(
            max_tokens=12,
            temperature=1.0,
            ignore_eos=True,
            seed=row_seed(3, row["shard"], row["row"]),
        )
        for row in rows
    ]
    outs = llm.generate(prompts, params, use_tqdm=False)
    return [(out.outputs[0].text, out.outputs[0].finish_reason) for out in outs]


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_generate_equals_llm(folder, tmp_path, llm, format):
    rows = [{"id": i, "prompt": text, "tags": ["x", i]} for i, text in enumerate(texts(30))]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_here(config(folder, tmp_path / "out", source, format=format))
    got = outputs(tmp_path / "out")
    assert [row["id"] for row in got] == list(range(30)) and not errors(tmp_path / "out")
    assert len({row["shard"] for row in got}) > 3
    prompts = [row["prompt"] for row in rows]
    assert [(row["generated_text"], row["finish_reason"]) for row in got] == expected_texts(
        llm, got, prompts
    )
    assert [row["prompt_tokens"] for row in got] == list(map(len, prompts))
    assert {row["output_tokens"] for row in got} == {12}
    tags = [row["tags"] if format == "jsonl" else json.loads(row["tags"]) for row in got]
    assert tags == [row["tags"] for row in rows]


def test_parquet_keeps_its_types(folder, tmp_path, llm):
    table = pa.table(
        {
            "when": pa.array(range(20), pa.timestamp("ms")),
            "question": texts(20),
            "raw": pa.array([b"\xff"] * 20),
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=6)
    batch = config(folder, tmp_path / "out", tmp_path / "in.parquet", prompt_column="question")
    run_here(batch)
    got = parquet.read_table(tmp_path / "out" / "data")
    assert got.select(table.column_names).equals(table)
    prompts = table["question"].to_pylist()
    assert [
        (row["generated_text"], row["finish_reason"]) for row in got.to_pylist()
    ] == expected_texts(llm, got.to_pylist(), prompts)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_strange_value_does_no_harm_where_nobody_asks_for_it(folder, tmp_path, format):
    """Python has no year 10000."""
    when = pa.array([0, 253402300800000], pa.timestamp("ms"))
    parquet.write_table(pa.table({"prompt": ["a", "b"], "when": when}), tmp_path / "in.parquet")
    run_here(config(folder, tmp_path / "out", tmp_path / "in.parquet", format=format))
    assert not errors(tmp_path / "out")
    if format == "parquet":
        assert parquet.read_table(tmp_path / "out" / "data")["when"].combine_chunks().equals(when)
    else:
        assert outputs(tmp_path / "out")[1]["when"] == "10000-01-01 00:00:00.000"
    asked = config(
        folder, tmp_path / "asked", tmp_path / "in.parquet", prompt_template="{{ when }}"
    )
    run_here(asked)
    (bad,) = errors(tmp_path / "asked")
    assert bad["row"] == 1 and "Python has no such value" in bad["reason"]


def strict_json(text):
    """JSON without words that are none."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_words_that_are_none(folder, tmp_path):
    columns = {
        "prompt": ["a", "b"],
        "x": [math.nan, 1.5],
        "many": [[math.inf, 2.0], [0.5]],
        "raw": [b"\xff\x00", b""],
    }
    parquet.write_table(pa.table(columns), tmp_path / "in.parquet")
    run_here(config(folder, tmp_path / "out", tmp_path / "in.parquet", format="jsonl"))
    (part,) = (tmp_path / "out" / "data").iterdir()
    first, second = map(strict_json, part.read_text().splitlines())
    assert (first["x"], first["many"], first["raw"]) == (None, [None, 2.0], "/wA=")
    assert (second["x"], second["many"], second["raw"]) == (1.5, [0.5], "")
    source = write_lines(tmp_path / "in.jsonl", [b'{"prompt": "a", "deep": {"x": [NaN]}}'])
    for format in ("jsonl", "parquet"):
        run_here(config(folder, tmp_path / format, source, format=format))
        (row,) = outputs(tmp_path / format)
        deep = row["deep"] if format == "jsonl" else strict_json(row["deep"])
        assert deep == {"x": [None]}


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_with_the_names_of_added_ones_are_kept(folder, tmp_path, format, suffix):
    rows = [{"prompt": "a", "row": 7, "generated_text": "old", "input_row": 8, "error": "none"}]
    if suffix == "jsonl":
        write_lines(tmp_path / "in.jsonl", rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    source = tmp_path / f"in.{suffix}"
    run_here(config(folder, tmp_path / "out", source, format=format))
    (got,) = outputs(tmp_path / "out")
    assert (got["row"], got["input_input_row"], got["input_row"], got["error"]) == (0, 7, 8, "none")
    assert got["input_generated_text"] == "old" != got["generated_text"]


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_output_keeps_what_it_is_told_to(folder, tmp_path, format, suffix):
    rows = [{"id": i, "q": text, "junk": "x"} for i, text in enumerate(texts(3))]
    if suffix == "jsonl":
        write_lines(tmp_path / "in.jsonl", rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    source = tmp_path / f"in.{suffix}"
    some = {"rename": {"q": "prompt"}, "keep": ["id"], "format": format}
    run_here(config(folder, tmp_path / "out", source, **some))
    for row, got in zip(rows, outputs(tmp_path / "out"), strict=True):
        assert got["id"] == row["id"] and got["prompt_tokens"] == len(row["q"])
        assert not {"q", "prompt", "junk"} & set(got) and not got.get("_extra")
    for name in ("columns", "keep"):
        with pytest.raises(ValueError, match=f"{name} must name columns of the input, got 'nope'"):
            make_plan(config(folder, tmp_path / "no", source, **{name: ["nope"]}))


def test_how_many_errors_are_too_many():
    for limit, counts in {
        0: [(5, 0, False), (1, 1, True)],
        2: [(5000, 2, False), (1, 1, True)],
        0.01: [(50, 40, False), (949, 0, False), (1, 0, True)],
        None: [(10**6, 10**6, False)],
    }.items():
        budget = ErrorBudget(limit)
        for rows, bad, hopeless in counts:
            budget.add(rows, bad)
            assert budget.is_hopeless == hopeless, (limit, rows, bad)
    few = ErrorBudget(0.5)
    few.add(3, 2)
    assert few.is_over and not few.is_hopeless


def test_score_text_files_of_any_length(folder, tmp_path, llm):
    (tmp_path / "in").mkdir()
    for i, text in enumerate([*texts(5), texts(1, 4000)[0] * 40, "x"]):
        (tmp_path / "in" / f"{i}.txt").write_text(text)
    run_here(config(folder, tmp_path / "out", tmp_path / "in", task="score"))
    got = outputs(tmp_path / "out")
    assert len(got) == 6 and any(row["prompt_tokens"] > 20 * 512 for row in got)
    for row in got:
        scores = llm.score(row["text"], use_tqdm=False)[1:]
        assert row["log_likelihood"] == sum(scores)
        assert row["perplexity"] == math.exp(-sum(scores) / len(scores))
    (bad,) = errors(tmp_path / "out")
    assert bad["location"].endswith("6.txt") and "at least 2 tokens" in bad["reason"]


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_embed_texts_of_any_length(folder, tmp_path, llm, format):
    rows = [{"text": text} for text in [*texts(5), texts(1, 4000)[0], ""]]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_here(config(folder, tmp_path / "out", source, task="embed", format=format))
    got = outputs(tmp_path / "out")
    assert [row["text"] for row in got] == [row["text"] for row in rows[:-1]]
    for row in got:
        [expected] = llm.embed(row["text"], use_tqdm=False)
        assert row["embedding"] == expected.outputs.embedding
        assert row["prompt_tokens"] == len(expected.prompt_token_ids)
    (bad,) = errors(tmp_path / "out")
    assert "is empty" in bad["reason"]
    if format == "parquet":
        [file, *_] = (tmp_path / "out" / "data").iterdir()
        assert parquet.read_schema(file).field("embedding").type.value_type == "float"


def test_prompts_in_dicts(folder, tmp_path, llm):
    ids = llm.encode("hello")
    prompts = [{"prompt": "hello"}, {"prompt_token_ids": ids}, {"text": "hello"}]
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": prompt} for prompt in prompts])
    run_here(config(folder, tmp_path / "out", source))
    got = outputs(tmp_path / "out")
    assert [(row["generated_text"], row["finish_reason"]) for row in got] == expected_texts(
        llm, got, ["hello", "hello"]
    )
    (bad,) = errors(tmp_path / "out")
    assert "'prompt' and 'prompt_token_ids', got 'text'" in bad["reason"]


def test_chat_and_templates(folder, tmp_path, llm):
    rows = [
        {"messages": [{"role": "user", "content": "hello"}], "name": "ann"},
        {"messages": "hello", "name": "bob"},
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_here(config(folder, tmp_path / "chat", source, task="chat"))
    first, second = outputs(tmp_path / "chat")
    prompt = llm.intake.encode_chat(rows[0]["messages"])
    assert [(row["generated_text"], row["finish_reason"]) for row in (first, second)] == (
        expected_texts(llm, [first, second], [prompt, prompt])
    )
    template = "dear {{ name }}, {{ messages | length }}"
    run_here(config(folder, tmp_path / "template", source, prompt_template=template))
    got = outputs(tmp_path / "template")
    assert [(row["generated_text"], row["finish_reason"]) for row in got] == expected_texts(
        llm, got, ["dear ann, 1", "dear bob, 5"]
    )


def test_bad_rows_are_told_and_stop_nobody(folder, tmp_path):
    good = {"prompt": "good", "n": 1}
    rows = [
        good,
        {"prompt": 5},
        {"prompt": ""},
        {"prompt": None},
        {"question": "?"},
        b"{",
        b'{"prompt": "\xff"}',
        {"prompt": "\ud800"},
        {"prompt": [2, 3, 4]},
        {"prompt": [2, 9999]},
        {"prompt": "x" * 900},
        {"prompt": "last", "n": "many", "more": 1},
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_here(config(folder, tmp_path / "out", source, max_row_bytes=500, shard_bytes=1 << 20))
    got = outputs(tmp_path / "out")
    assert [row["row"] for row in got] == [0, 8, 11]
    assert [(row["n"], row["_extra"]) for row in got] == [
        (1, None),
        (None, '{"prompt": [2, 3, 4]}'),
        (None, '{"n": "many"}'),
    ]
    assert [row["more"] for row in got] == [None, None, 1]
    reasons = {row["row"]: row["reason"] for row in errors(tmp_path / "out")}
    assert len(reasons) == 9 and sorted([*reasons, 0, 8, 11]) == list(range(12))
    for row, words in {
        1: "column 'prompt' must be text or token ids, got int '5'",
        2: "column 'prompt' is empty",
        3: "got null",
        4: "no column 'prompt' in 'question'",
        5: "no JSON",
        6: "not UTF-8",
        7: "prompt is not valid text",
        9: "must be in [0, 97)",
        10: "larger than max_row_bytes=500",
    }.items():
        assert words in reasons[row]


@pytest.mark.parametrize("task", ["generate", "score"])
def test_rows_whose_logits_are_not_finite_have_no_result(tmp_path, task):
    """``~`` is the token that makes the model overflow."""
    folder = save_overflowing(tmp_path / "model", ord("~") - ord(" ") + 2)
    prompts = ["good", "a ~ b ~", "also good"]
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": p, "text": p} for p in prompts])
    run_here(config(folder, tmp_path / "out", source, task=task))
    assert [row["row"] for row in outputs(tmp_path / "out")] == [0, 2]
    (bad,) = errors(tmp_path / "out")
    assert bad["row"] == 1
    assert ("logits for position" in bad["reason"]) and ("are not finite" in bad["reason"])


def test_column_types():
    rows = [
        {"a": 1, "b": 1, "c": "x", "d": [1], "e": None, "f": True},
        {"a": 2, "b": 1.5, "c": 5, "f": False},
        {"c": "y"},
    ]
    assert column_types(rows) == {
        "a": "int64",
        "b": "double",
        "c": "string",
        "d": "json",
        "e": "json",
        "f": "bool",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"task": "translate"},
            "task must be one of generate, score, embed, chat, openai, got 'translate'",
        ),
        ({"format": "csv"}, "format must be one of parquet, jsonl, None, got 'csv'"),
        ({"num_replicas": 0}, "num_replicas must be >= 1, got 0"),
        ({"prompt_template": "{{ x"}, "prompt_template: "),
        ({"prompt_template": "x", "prompt_column": "y"}, "must not both be given"),
        ({"engine": {"windows": 5}}, "EngineConfig has no setting 'windows'"),
        ({"engine": {"window_size": 0}}, "window_size must be >= 1"),
        ({"sampling_params": SamplingParams(max_tokens=None)}, "max_tokens must be an int"),
        ({"sampling_params": SamplingParams(n=2)}, "n=1"),
        ({"max_errors": "many"}, "max_errors must be a count such as 100 or a share such as 1%"),
        ({"max_errors": -1}, "max_errors must be a count"),
        ({"rename": ["a"]}, "rename must be new names of columns by old ones"),
        ({"input_format": "lance"}, "input_format must be one of jsonl, json, csv"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchConfig(input=["x.jsonl"], output="out", model="m", **settings)


def test_inputs_that_do_not_fit(folder, bare_folder, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}])
    with pytest.raises(ValueError, match="task='generate' needs a tokenizer"):
        make_plan(config(bare_folder, tmp_path / "out", source))
    no_template = shutil.copytree(folder, tmp_path / "no template")
    (no_template / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        make_plan(config(no_template, tmp_path / "out", source, task="chat"))
    source.write_text("")
    with pytest.raises(ValueError, match="input must have rows"):
        make_plan(config(folder, tmp_path / "out", source))
    for name, table in {"a": {"x": [1]}, "b": {"x": ["1"]}}.items():
        parquet.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(
        ValueError, match="columns that go together, .*a.parquet and .*b.parquet have not"
    ):
        make_plan(config(folder, tmp_path / "out", paths))


def test_small_shards_are_worked_on_together(folder, tmp_path):
    rows = [{"prompt": f"{i:04}"} for i in range(2000)]  # 19 bytes each
    source = write_lines(tmp_path / "in.jsonl", rows)
    batch = {"engine": {"max_num_seqs": 64, "max_num_batched_tokens": 128}}
    assert make_plan(config(folder, tmp_path / "out", source, **batch)).parts_ahead == 7
    whole = {**batch, "shard_bytes": 1 << 20}
    assert make_plan(config(folder, tmp_path / "out", source, **whole)).parts_ahead == 4
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))  # one shard of as many parts
    assert make_plan(config(folder, tmp_path / "out", packed, **batch)).parts_ahead == 7


def test_how_machines_are_shared():
    laptop, head, node = {"CPU": 2.0}, {"CPU": 4.0}, {"CPU": 16.0, "GPU": 8.0}
    assert Replicas.fit(None, [laptop], "auto") == Replicas(
        num_replicas=1, num_cpus=1.6, num_gpus=0, num_threads=2
    )
    assert Replicas.fit(2, [laptop], "auto").num_cpus == 0.8
    assert Replicas.fit(4, [laptop], "auto") == Replicas(
        num_replicas=4, num_cpus=0.4, num_gpus=0, num_threads=1
    )
    assert Replicas.fit(None, [head, node, node], "auto").num_replicas == 16
    assert Replicas.fit(3, [head, node], "cpu").num_threads == 5


def test_whether_a_replica_has_room():
    replicas = Replicas(num_replicas=2, num_cpus=1.6, num_gpus=1, num_threads=1)
    assert replicas.have_room({"CPU": 1.6, "GPU": 1.0})
    assert not replicas.have_room({"CPU": 1.5, "GPU": 1.0})
    assert not replicas.have_room({"CPU": 4.0})


def test_threads_that_the_user_asks_for(folder, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    batch = config(folder, tmp_path / "out", source)
    assert share_cluster(ray, batch.engine_config, None).num_threads == 4
    batch = config(folder, tmp_path / "out", source, engine={"num_threads": 3})
    assert share_cluster(ray, batch.engine_config, None).num_threads == 3


def test_the_bar_tells_rates_once_there_is_time_to_divide_by():
    now, done = [0.0], BatchProgress(num_engines=1, num_rows=6, num_tokens=90)
    bar = progress.Bar(lambda: done, 100, 2, clock=lambda: now[0])
    bar.show()
    assert "6 rows" in bar._bar.postfix and "/s" not in bar._bar.postfix
    now[0] = 3.0
    bar.show()
    assert "1 of 2 engines, 0 parts, 6 rows, 2.0 rows/s, 30 tok/s" in bar._bar.postfix
    assert bar.start_seconds == 0.0 and bar.seconds == 3.0


def test_the_bar_tells_what_it_waits_for():
    now, done = [0.0], BatchProgress()
    replicas = Replicas(num_replicas=2, num_cpus=1.6, num_gpus=1, num_threads=1)
    free, whole = {"CPU": 0.25}, {"CPU": 4.0, "GPU": 2.0}
    bar = progress.Bar(
        lambda: done, 100, 2, lambda: replicas.waiting(free, whole), clock=lambda: now[0]
    )
    bar.show()
    words = "waiting for 2 engines of 1.6 CPU and 1 GPU each, 0.25 of 4 CPU and 0 of 2 GPU are free"
    assert bar._bar.postfix == words
    free["CPU"] = 0.5
    bar.show()
    assert bar._bar.postfix == words, "that would be a line for every change"
    free["CPU"], now[0] = 0.25, 130.0
    bar.show()
    assert bar._bar.postfix == f"{words}, for 2 min"
    done.num_placed = 1
    bar.show()
    assert bar._bar.postfix == "loading the model, for 2 min"
    done.num_engines = 1
    bar.show()
    assert "1 of 2 engines, 0 parts" in bar._bar.postfix and bar.start_seconds == 130.0
