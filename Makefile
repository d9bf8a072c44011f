# Two commands: `make train` trains the quickstart recipe, `make test` runs every check.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install train test test-long clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

train: install
	$(BIN)/rescue train --recipe quickstart

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not long"

test-long: install
	$(BIN)/pytest -m long

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
