# `make train` trains the quickstart recipe, `make test` runs the checks and most tests (8 minutes on two
# cores), `make test-all` also those that start and kill processes or train for a while (as CI does).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install train check test test-all test-long test-faults test-cluster test-slurm \
	test-browser docker gpu-check clean

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
	$(BIN)/pytest -m "not long and not slow and not cluster and not faults" \
		--numprocesses auto --dist worksteal

test-all: check
	$(BIN)/pytest -m "not long and not cluster and not faults" \
		--numprocesses auto --dist worksteal

test-long: install
	$(BIN)/pytest -m long

# Kills, mutated files and failing systems, with a table of what came of them
test-faults: install
	$(BIN)/pytest -m faults tests/faults

# SLURM with two nodes on this machine, and two machines in network namespaces: needs Debian and
# root; half an hour on two cores
test-cluster: test-slurm
	command -v bindfs || (apt-get update && apt-get install --yes bindfs)
	$(BIN)/pytest tests/runs/test_machines.py

test-slurm: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[slurm]'
	bash tests/start_slurm.sh
	$(BIN)/pytest tests/runs/test_slurm.py

# The report in Debian's chromium; screenshots in build/screenshots
test-browser: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright
	command -v chromium || (apt-get update && apt-get install --yes chromium)
	$(BIN)/pytest tests/report/test_browser.py

# The image for a CPU, or with DEVICE=cuda, by the first builder that answers; it trains two steps
DEVICE ?= cpu
docker:
	@for builder in docker podman; do \
	    if $$builder info > /dev/null 2>&1; then \
	        $$builder build --tag rescue --build-arg DEVICE=$(DEVICE) . \
	            && $$builder run --rm rescue train --smoke --device cpu; \
	        exit; \
	    fi; \
	done; \
	if command -v buildah > /dev/null; then \
	    buildah build --tag rescue --build-arg DEVICE=$(DEVICE) .; \
	    exit; \
	fi; \
	echo "No builder answers here: docker, podman (info) and buildah were tried." >&2; exit 1

# Ten minutes on one GPU, into build/gpu-check/gpu-check.json; CIFAR=DIR_OR_TAR for the whole runs.
# PYTHON may be a machine's own that has torch already; nothing is installed
gpu-check:
	$(PYTHON) -m tests.gpu_check build/gpu-check $(if $(CIFAR),--data $(CIFAR))

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
