"""Writes docs/evidence.md: claims of the StreamingLLM paper beside what the result files say.

All of the project's figures come from ``benchmarks/results``; those of the paper (arXiv 2309.17453)
and the independent ones stand with the sections. A section without its file is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.evidence_perplexity import cache, figures, linebreak, long_haul, modes, sinks
from benchmarks.evidence_streams import attention, dialogue, recall, sink_token
from benchmarks.evidence_text import Rows
from benchmarks.harness import read_results
from benchmarks.report import paragraph

PAGE = Path(__file__).parent.parent / "docs" / "evidence.md"

# In the order of the page, by the files that they are made of.
SECTIONS: tuple[tuple[str, Callable[[Rows], list[str]]], ...] = (
    ("modes_smollm2", modes("smollm2")),
    ("modes_qwen", modes("qwen")),
    ("linebreak_smollm2", linebreak),
    ("sinks_smollm2", sinks("smollm2")),
    ("sinks_qwen", sinks("qwen")),
    ("cache_smollm2", cache),
    ("train_sink_token", sink_token),
    ("attention_smollm2", attention("smollm2")),
    ("attention_qwen", attention("qwen")),
    ("dialogue_smollm2", dialogue("smollm2")),
    ("dialogue_qwen", dialogue("qwen")),
    ("recall_smollm2", recall("smollm2")),
    ("recall_qwen", recall("qwen")),
    ("long_haul", long_haul),
    ("sink_effect_smollm2-135m-instruct", figures),
    ("sink_effect_qwen2.5-coder-0.5b", figures),
)
INTRODUCTION = (
    "# Evidence",
    "`python -m benchmarks.evidence` writes this page from the files in `benchmarks/results`. It "
    "is not edited by hand.",
    "For each claim of the StreamingLLM paper "
    "([arXiv 2309.17453](https://arxiv.org/abs/2309.17453)), it has the command that checks the "
    "claim here, and the figures beside the paper's. The paper measures models of 7 to 70 billion "
    "parameters on PG19. Here, small models read Jane Austen's novels, so what can be compared is "
    "the shape of a result and not its size.",
    "`$TEXTS` is the folder of texts, and `$QWEN` the model file that `python -m benchmarks.fetch "
    "--models` names. Sinks + window count the tokens that a query sees, itself included: the "
    "paper's 4 + 1020 is 4 + 1021 here.",
    "The independent figures of SmolLM2 were made with the tokenizer that transformers builds from "
    "the GGUF file. It splits digits and line breaks otherwise than the file asks for. `python -m "
    "benchmarks.sink_effect` checks that this changes no token of the novels.",
)


def render(results: Mapping[str, Rows], images: str) -> str:
    """The page; ``images`` is the path from it to the folder of the pictures."""
    parts = [paragraph(text) for text in INTRODUCTION]
    machines: dict[str, None] = {}
    for name, write in SECTIONS:
        rows = results.get(name, ())
        # A file of another origin, or of a run that was cut short, tells no command.
        if rows and "command" in rows[0]:
            parts += write(rows)
            for row in rows:
                machine = row["machine"]
                machines[
                    f"{machine['threads']} threads of {machine['cpu']}, torch "
                    f"{machine['torch']}, {machine['date']}"
                ] = None
    if machines:
        parts.append(paragraph(f"Measured on {'; '.join(machines)}."))
    return "\n\n".join(parts).replace("(IMAGES/", f"({images}/") + "\n"


def write_page(folder: Path, page: Path = PAGE) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    images = Path(os.path.relpath(folder, page.parent)).as_posix()
    page.write_text(render(read_results(folder), images))
