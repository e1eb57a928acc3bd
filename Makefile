PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo serve lint types test check format

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

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: install
	$(BIN)/pyright

check: lint types test

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
