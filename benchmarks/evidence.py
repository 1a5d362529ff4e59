"""Runs the experiments of the StreamingLLM paper and writes docs/evidence.md from what they give.

    python -m benchmarks.evidence                  # all: on two cores, some hours
    python -m benchmarks.evidence --quick          # all, tiny: does everything work?
    python -m benchmarks.evidence --only modes_smollm2 long_haul
    python -m benchmarks.evidence --list           # names, tokens and commands
    python -m benchmarks.evidence --page           # only the page, from what there is

An experiment whose results are there is not run again, unless with --redo; one that was
interrupted is started again, and goes on where it was if it is one of the long ones. Results are
JSON lines in benchmarks/results, one file per experiment; those of --quick, and their page, are in
build/evidence.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence_page import PAGE, write_page
from benchmarks.harness import QUICK_RESULTS, RESULTS, parser, write_results
from benchmarks.sink_effect import DIFFERS
from benchmarks.texts import NOVELS, austen, cache_folder, capitals_path
from benchmarks.weights import model_path

ROOT = Path(__file__).parent.parent
QWEN = "qwen2.5-coder-0.5b"
CLI = [sys.executable, "-c", "from paged_stream.cli import main; raise SystemExit(main())"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One command and the file that it writes.

    Args:
        name: of the result files.
        command: as it is shown. ``$TEXTS`` is the folder of texts, ``$QWEN`` the model's file.
        quick: options put behind it for a run that only shows that it works.
        tokens: that go through the model, roughly, in thousands.
        plots: whether it draws a picture.
        is_long: whether it keeps a stream to go on from.
    """

    name: str
    command: str
    quick: str
    tokens: int
    plots: bool = True
    is_long: bool = False

    def shown(self, *, quick: bool) -> str:
        return f"{self.command} {self.quick}" if quick else self.command


ALL_NOVELS = " ".join(f"$TEXTS/{novel}.txt" for novel in NOVELS)
TINY = "--tokens 300 --window-size 60"
EXPERIMENTS = (
    Experiment(
        name="sink_effect_smollm2-135m-instruct",
        command="python -m benchmarks.sink_effect",
        quick="--quick",
        tokens=280,
        plots=False,
    ),
    Experiment(
        name=f"sink_effect_{QWEN}",
        command=f"python -m benchmarks.sink_effect --model {QWEN}",
        quick="--quick",
        tokens=13,
        plots=False,
    ),
    Experiment(
        name="modes_smollm2",
        command="paged-stream perplexity $TEXTS/persuasion.txt --tokens 16384 --window-size 508 "
        "--recompute-every 32",
        quick=TINY,
        tokens=310,
    ),
    Experiment(
        name="modes_qwen",
        command="paged-stream perplexity $TEXTS/persuasion.txt --tokens 8192 --window-size 508 "
        "--recompute-every 64 --model $QWEN",
        quick=TINY,
        tokens=90,
    ),
    Experiment(
        name="linebreak_smollm2",
        command="paged-stream perplexity $TEXTS/persuasion.txt --tokens 16384 --window-size 508 "
        "--ablation linebreak",
        quick=TINY,
        tokens=49,
    ),
    Experiment(
        name="sinks_smollm2",
        command="paged-stream perplexity $TEXTS/emma.txt --tokens 32768 --window-size 508 "
        "--ablation sinks",
        quick=TINY,
        tokens=164,
    ),
    Experiment(
        name="sinks_qwen",
        command="paged-stream perplexity $TEXTS/emma.txt --tokens 8192 --window-size 508 "
        "--ablation sinks --model $QWEN",
        quick=TINY,
        tokens=41,
    ),
    Experiment(
        name="cache_smollm2",
        command="paged-stream perplexity $TEXTS/emma.txt --tokens 32768 --ablation cache",
        quick=TINY + " --cache-sizes 32 64",
        tokens=164,
    ),
    Experiment(
        name="attention_smollm2",
        command="paged-stream attention-map $TEXTS/persuasion.txt --dtype float32",
        quick="--samples 4 --share-length 600",
        tokens=6,
    ),
    Experiment(
        name="attention_qwen",
        command="paged-stream attention-map $TEXTS/persuasion.txt --dtype float32 --model $QWEN",
        quick="--samples 4 --share-length 600",
        tokens=6,
    ),
    Experiment(
        name="recall_smollm2",
        command="paged-stream streameval --cache 512 1024 2048 --distances 0 10 20 40 80 160 "
        "--questions 20",
        quick="--cache 256 --distances 0 20 --questions 2",
        tokens=125,
    ),
    Experiment(
        name="recall_qwen",
        command="paged-stream streameval --cache 1024 --distances 0 10 20 40 80 160 "
        "--questions 20 --model $QWEN",
        quick="--cache 256 --distances 0 20 --questions 2",
        tokens=43,
    ),
    Experiment(
        name="dialogue_smollm2",
        command="paged-stream dialogue $TEXTS/capitals.jsonl --cache 512 --dtype float32",
        quick="--rounds 2 --answer-tokens 8",
        tokens=40,
    ),
    Experiment(
        name="dialogue_qwen",
        command="paged-stream dialogue $TEXTS/capitals.jsonl --cache 512 --dtype float32 "
        "--model $QWEN",
        quick="--rounds 2 --answer-tokens 8",
        tokens=40,
    ),
    Experiment(
        name="train_sink_token",
        command="python -m benchmarks.train_sink_token",
        quick="--size quick",
        tokens=16_400,
        plots=False,
    ),
    Experiment(
        name="long_haul",
        command=f"paged-stream perplexity {ALL_NOVELS} --cycle --tokens 4000000 --modes streaming "
        "--window-size 508",
        quick="--tokens 3000 --every 1000 --window-size 60",
        tokens=4000,
        is_long=True,
    ),
)


def run(experiment: Experiment, folder: Path, *, quick: bool, anew: bool = False) -> bool:
    """Run one; returns whether its results are there now.

    Args:
        anew: from the beginning, also if a stream was saved.
    """
    shown = experiment.shown(quick=quick)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / experiment.name
        words = shown.replace("$TEXTS", str(cache_folder())).split()
        words = [model_path(QWEN) if word == "$QWEN" else word for word in words]
        if words[0] == "python":
            command = [sys.executable, *words[1:], "--results", scratch]
        else:
            command = [*CLI, *words[1:], "--json", f"{out}.jsonl"]
            command += ["--plot", f"{out}.png"] if experiment.plots else []
        if experiment.is_long:
            saved = cache_folder().parent / "evidence" / f"{folder.name}-{experiment.name}.stream"
            saved.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                saved.unlink(missing_ok=True)
            command += ["--save-stream", str(saved), *["--resume"] * saved.exists()]
        status = subprocess.run(command, cwd=ROOT, env=os.environ).returncode
        results = out.with_name(f"{out.name}.jsonl")
        if status not in (0, DIFFERS) or not results.exists():
            return False
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        for row in rows:
            row.pop("machine", None)
            row["command"] = shown
            if "model" in row:  # a path would name this machine's folders
                row["model"] = Path(row["model"]).name
        folder.mkdir(parents=True, exist_ok=True)
        write_results(experiment.name, rows, folder)
        if experiment.plots:
            shutil.copy(f"{out}.png", folder)
    return True


def is_done(experiment: Experiment, folder: Path, *, quick: bool) -> bool:
    """Whether its results are there, and of this command."""
    path = folder / f"{experiment.name}.jsonl"
    if not path.exists():
        return False
    first = json.loads(path.read_text().splitlines()[0])
    return first.get("command") == experiment.shown(quick=quick)


def main() -> int:
    arguments = parser(__doc__)
    names = [experiment.name for experiment in EXPERIMENTS]
    arguments.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--redo", action="store_true", help="those that are done, too")
    arguments.add_argument("--list", action="store_true", help="say what would be run")
    arguments.add_argument("--page", action="store_true", help="run nothing, write the page")
    args = arguments.parse_args()
    folder, page = (QUICK_RESULTS, QUICK_RESULTS / "evidence.md") if args.quick else (RESULTS, PAGE)
    chosen = [e for e in EXPERIMENTS if args.only is None or e.name in args.only]
    failed = []
    if not args.list and not args.page:
        austen(NOVELS[0])  # which fetches all of them
        capitals_path()
    for experiment in chosen:
        done = is_done(experiment, folder, quick=args.quick) and not args.redo
        if args.list:
            state = "done" if done else f"{experiment.tokens:,}K tokens"
            print(f"{experiment.name} ({state})\n    {experiment.shown(quick=args.quick)}")
        elif not args.page and not done:
            print(f"\n{experiment.name}: {experiment.shown(quick=args.quick)}", flush=True)
            started = time.monotonic()
            if not run(experiment, folder, quick=args.quick, anew=args.redo):
                failed.append(experiment.name)
            print(f"({time.monotonic() - started:.0f} s)", flush=True)
            write_page(folder, page)
    if not args.list:
        write_page(folder, page)
        print(f"wrote {page}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
