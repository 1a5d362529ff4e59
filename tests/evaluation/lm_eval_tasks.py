"""Tasks for lm-eval in local files, one of each kind of request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

_METRICS = {
    "choices": ["acc", "acc_norm"],
    "endings": ["acc", "perplexity"],
    "texts": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    "answers": ["exact_match"],
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{target}}",
    },
    "endings": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": " {{ending}}",
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 24, "do_sample": False},
    },
}
TASKS = tuple(_SETTINGS)
ROWS: dict[str, list[dict[str, Any]]] = {
    "choices": [
        {"question": "What colour is the sky?", "choices": ["blue", "loud"], "target": 0},
        {"question": "How many legs has a dog?", "choices": ["two", "four", "nine"], "target": 1},
        {"question": "What do bees make?", "choices": ["honey", "paper money"], "target": 0},
        {"question": "What is 2 + 3?", "choices": ["5", "23", "1"], "target": 0},
        {"question": "Which month follows May?", "choices": ["March", "June"], "target": 1},
    ],
    "endings": [
        {"text": "The capital of France is", "ending": "Paris"},
        {"text": "Once upon a", "ending": "time"},
        {"text": "To be or not to be, that is the", "ending": "question"},
        {"text": "The opposite of hot is", "ending": "cold"},
    ],
    "texts": [
        {"text": "The water cycle describes how water moves on, above and below the ground. " * 2},
        {"text": "It was the best of times, it was the worst of times, it was 1859."},
        {"text": "Short."},
    ],
    "answers": [
        {"question": "Q: What is the capital of France?\nA:", "answer": "Paris"},
        {"question": "Q: Name a colour.\nA:", "answer": "Blue"},
        {"question": "The first three planets are", "answer": "Mercury"},
    ],
}


def write_tasks(folder: Path) -> None:
    """Write a YAML file and its documents for each of `TASKS`."""
    for task, settings in _SETTINGS.items():
        rows = folder / f"{task}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
        description = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "metric_list": [{"metric": metric} for metric in _METRICS[task]],
            "metadata": {"version": 1.0},
            **settings,
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(description))
