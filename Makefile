PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q
FAST := not ray and not browser and not slow
# Tests that start Ray, a browser or processes, in parts, the longest first: `make -j 2 test-rest` runs two.
NODES := tests/test_autoscale.py tests/test_lost_nodes.py
REST := nodes s a-c p l t-z d-k m-o q-r clients

.PHONY: install demo serve bench lint types check check-deploy lock sbom format \
	test test-fast test-fast-a-p test-fast-q-z test-rest test-evidence

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	# pip compiles with one core, and the packages' tests too; a template that is no Python fails.
	$(BIN)/python -m compileall -q -j 0 -x '/tests?/' .venv/lib > /dev/null || true
	touch $@

demo: install
	$(BIN)/python -m jobs.armorm embedded --out runs/embedded
	$(BIN)/python -m jobs.laser demo --out runs/laser-demo

serve: install
	$(BIN)/python -m jobs.serve demo

test: test-fast test-rest

# Two halves, so that two cores share them.
test-fast: install
	$(MAKE) --jobs 2 test-fast-a-p test-fast-q-z

test-fast-a-p:
	$(PYTEST) -m "$(FAST)" tests/test_[a-p]*.py

test-fast-q-z:
	$(PYTEST) -m "$(FAST)" tests/test_[q-z]*.py

test-rest: $(REST:%=test-rest-%)

test-rest-nodes: install
	$(PYTEST) $(NODES)

test-rest-clients: install
	$(PYTEST) tests/clients

test-rest-%: install
	$(PYTEST) -m "not ($(FAST))" $(filter-out $(NODES),$(wildcard tests/test_[$*]*.py))

# The tests of benchmarks and of evidence; neither is part of the product.
test-evidence: install
	$(PYTEST) benchmarks/tests evidence/tests

# Ratios and counts of the commit that is checked out, in at most 20 minutes on two idle cores.
bench: install
	$(BIN)/python -m benchmarks.release --out benchmarks/releases
	$(BIN)/python -m benchmarks.release_page --out benchmarks/releases

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: install
	$(BIN)/pyright

check: lint test types check-deploy

# The deployment files against checkov's rules, in an environment of its own: its pins are not ours.
check-deploy: install .venv/checkov/.installed
	rm -rf .venv/manifests
	$(BIN)/python -m tests.builders.pods .venv/manifests
	cp Dockerfile deploy/aws/stack.yaml .venv/manifests
	.venv/checkov/bin/checkov --config-file deploy/checkov.yaml --directory .venv/manifests

.venv/checkov/.installed: .venv/.installed
	$(PYTHON) -m venv .venv/checkov
	.venv/checkov/bin/pip install --quiet 'checkov==3.3.30'
	touch $@

# All packages of the image with their hashes; `sbom` lists what this environment has, as CycloneDX.
lock: .venv/lock/.installed
	.venv/lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
		--extra cluster --constraint constraints.txt --output-file requirements.lock \
		pyproject.toml deploy/image.in
	# The extras name Panoply itself, which has no hash and is installed behind the others.
	sed -i '/^# WARNING/,/via panoply/d' requirements.lock

sbom: install .venv/lock/.installed
	.venv/lock/bin/cyclonedx-py environment $(BIN)/python --output-file sbom.json

.venv/lock/.installed: .venv/.installed
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet 'pip-tools>=7.5' 'cyclonedx-bom>=7'
	touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
