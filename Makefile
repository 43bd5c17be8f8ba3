# `make help` lists the targets. PYTHON chooses the interpreter for the virtual environment,
# VENV where it is made; PYTEST_FLAGS, QUICKSTART_FLAGS and BENCHMARK_FLAGS are added to those
# commands.

PYTHON ?= python3.11
VENV ?= .venv
PYTEST_FLAGS ?=
QUICKSTART_FLAGS ?=
BENCHMARK_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup quickstart benchmark test test-fast lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '  make %-11s %s\n' "$$name" "$$what"; done

setup: $(STAMP)  ## make the virtual environment and install the package in it

$(STAMP): setup.py pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: $(PYTHON) is not installed; install Python 3.11, or say where it is: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "error: $(PYTHON) is not Python 3.11; say where one is: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@echo "installing into $(VENV): about 3 GB, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[beam,dev]"
	@touch $@

quickstart: $(STAMP)  ## simulate, train, evaluate, export and predict, in under 10 minutes
	$(BIN)/python tools/quickstart.py $(QUICKSTART_FLAGS)

benchmark: $(STAMP)  ## the tables of docs/benchmarks.md, on a machine that does nothing else
	$(BIN)/python tools/benchmark.py --suite=simulation $(BENCHMARK_FLAGS)
	$(BIN)/python tools/benchmark.py --suite=reading $(BENCHMARK_FLAGS)
	$(BIN)/python tools/benchmark.py --suite=training $(BENCHMARK_FLAGS)
	$(BIN)/python tools/benchmark.py --suite=serving $(BENCHMARK_FLAGS)

test: $(STAMP)  ## the whole test suite, fast tests first
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_FLAGS)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

test-fast: $(STAMP)  ## the tests that are not marked slow
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_FLAGS)

lint: $(STAMP)  ## ruff: lint rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the virtual environment and caches; data/ and runs/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find dlens_tf datasets tools tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
