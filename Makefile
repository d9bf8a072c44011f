# `make train` trains the quickstart recipe, `make test` runs the checks and most tests (8 minutes on two
# cores), `make test-all` also those that start and kill processes or train for a while (as CI does).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install train check test test-all test-long test-slurm test-browser gpu-check clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

train: install
	$(BIN)/rescue train --recipe quickstart

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -m "not long and not slow" --numprocesses auto --dist worksteal

test-all: check
	$(BIN)/pytest -m "not long" --numprocesses auto --dist worksteal

test-long: install
	$(BIN)/pytest -m long

# SLURM with one node on this machine: needs Debian and root
test-slurm: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[slurm]'
	bash tests/start_slurm.sh
	$(BIN)/pytest tests/runs/test_slurm.py

# The report in Debian's chromium; screenshots in build/screenshots
test-browser: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright
	command -v chromium || (apt-get update && apt-get install --yes chromium)
	$(BIN)/pytest tests/report/test_browser.py

# Ten minutes on one GPU, into build/gpu-check/gpu-check.json; CIFAR=DIR_OR_TAR for the whole runs.
# PYTHON may be a machine's own that has torch already; nothing is installed
gpu-check:
	$(PYTHON) -m tests.gpu_check build/gpu-check $(if $(CIFAR),--data $(CIFAR))

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
