PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q
FAST := not ray and not browser and not slow
# Start nodes that come and go, and mostly wait for them: `make -j 2 test` does so beside the rest.
NODES := tests/test_autoscale.py tests/test_lost_nodes.py

.PHONY: install demo serve lint types check format \
	test test-fast test-fast-a-p test-fast-q-z test-rest test-nodes test-evidence

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

test: test-fast test-rest test-nodes

# Two halves, so that two cores share them.
test-fast: install
	$(MAKE) --jobs 2 test-fast-a-p test-fast-q-z

test-fast-a-p:
	$(PYTEST) -m "$(FAST)" tests/test_[a-p]*.py

test-fast-q-z:
	$(PYTEST) -m "$(FAST)" tests/test_[q-z]*.py

test-rest: install
	$(PYTEST) -m "not ($(FAST))" $(NODES:%=--ignore=%)

test-nodes: install
	$(PYTEST) $(NODES)

# The tests of benchmarks and of evidence; neither is part of the product.
test-evidence: install
	$(PYTEST) benchmarks/tests evidence/tests

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
