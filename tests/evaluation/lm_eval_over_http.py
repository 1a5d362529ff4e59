"""Runs lm-eval's clients of OpenAI's API on the tasks of a folder, and writes what they found."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(base: str, model: str, folder: str) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/caches"}
    import lm_eval
    from lm_eval.tasks import TaskManager

    def run(client: str, path: str, tasks: list[str], **options: Any) -> Any:
        found = lm_eval.simple_evaluate(
            model=client,
            model_args={"model": model, "base_url": f"{base}/{path}"},
            tasks=tasks,
            task_manager=TaskManager(include_path=folder),
            **options,
        )
        samples = found["samples"]
        responses = {task: {row["doc_id"]: row["resps"] for row in samples[task]} for task in tasks}
        return {"figures": found["results"], "responses": responses}

    tasks = sorted(path.stem for path in Path(folder).glob("*.jsonl"))
    texts = run("local-completions", "completions", tasks)
    chats = run("local-chat-completions", "chat/completions", ["answers"], apply_chat_template=True)
    content = {"completions": texts, "chats": chats}
    (Path(folder) / "found.json").write_text(json.dumps(content, default=str))


main(*sys.argv[1:])
