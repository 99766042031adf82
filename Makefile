.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Other libraries have one of their own: torchattacks and pip-audit want other versions of requests.
PEERS := .venv-bench

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## install, then train, attack and certify a classifier of digits: one table
	$(BIN)/advtrain

test: $(VENV)/.installed-dev  ## install the development extras, run the tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

bench-gpu: $(PEERS)/.installed  ## measure this GPU in ten minutes, into docs/benchmarks.md
	$(PEERS)/bin/python scripts/bench_gpu.py

lint: $(VENV)/.installed-dev  ## style, types, and dependencies against known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/audit.py

lock: $(VENV)/.installed-dev  ## find the newest versions that fit together; writes constraints.txt
	$(BIN)/python -m pip install --quiet uv
	printf '%s\n' "# Versions for the tests, on all systems and Pythons from 3.11; \`make lock\` writes this." \
	  "# pip takes them by PIP_CONSTRAINT=constraints.txt make test" > constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade \
	  --no-header --no-annotate pyproject.toml >> constraints.txt

format: $(VENV)/.installed-dev  ## put the code into the house's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

wheel: $(VENV)/.installed-dev  ## build the wheel and the source archive into dist/
	$(BIN)/python -m build

clean:  ## remove what building and testing leave; outputs/ stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python $(PEERS)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "advtrain needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(PEERS)/.installed: pyproject.toml | $(PEERS)/bin/python
	$(PEERS)/bin/python -m pip install --quiet --editable '.[bench]'
	touch $@

.PHONY: help demo test test-slow bench-gpu lint lock format wheel clean
