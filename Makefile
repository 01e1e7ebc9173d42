# Two commands are enough: `make demo` and `make test`. Both set up .venv first, once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Python 3.11 by name, else whatever python3 is; it is checked before the environment is made.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# One thread a process: two workers fill two cores, and results do not depend on the machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: help install demo test check quick format lint types layers clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

install: $(STAMP)  ## make .venv with the package and the versions of constraints.txt

# torch first and alone: pip's own configuration decides which build (CPU or CUDA) it finds.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or python3 on the PATH; install Python 3.11 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1), but Python 3.11 or newer is needed;" \
	         "install it or run: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## fetch the model and the ratings, run the whole loop, leave a report
	$(BIN)/lit-rlhf demo

test: $(STAMP)  ## all tests
	$(PYTEST) --ignore=tests/configs
	$(PYTEST) --jaxtyping-packages= tests/configs

check: format lint types layers quick  ## format, lint, types, layers, quick tests; changes nothing

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

quick: $(STAMP)  ## the tests that take seconds
	$(PYTEST) -m "not slow" --ignore=tests/configs

clean:  ## remove .venv and the caches of the tools
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
