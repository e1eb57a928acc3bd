PYTHON ?= python3
BIN := .venv/bin
# Start nodes that come and go, and mostly wait for them: `make -j 2 test` does so beside the rest.
NODES := tests/test_autoscale.py tests/test_lost_nodes.py

.PHONY: install demo serve lint types test test-here test-nodes check format

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python -m jobs.armorm embedded --out runs/embedded
	$(BIN)/python -m jobs.laser demo --out runs/laser-demo

serve: install
	$(BIN)/python -m jobs.serve demo

test: test-here test-nodes

test-here: install
	$(BIN)/python -m pytest -q $(NODES:%=--ignore=%)

test-nodes: install
	$(BIN)/python -m pytest -q $(NODES)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: install
	$(BIN)/pyright

check: lint test types

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
