# make up     installs what the mesh needs and runs it on loopback; Ctrl-C stops it
# make test   installs what the tests need and runs all of them, two processes side by side (PARALLEL=0: one)
# make check  format, lint, types, layering, contracts, stubs, secrets
# make engines  installs what the tests of the optional engines need (torch, TensorFlow Lite, TensorRT); else they skip
# make bench  the figures of the bar (benchmarks/)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN     = $(VENV)/bin
CODE    = gateway placement scheduler worker registry runtime cli build benchmarks tests
UP      ?=
# Test processes side by side, a file at a time: most tests wait for other processes more than they compute.
PARALLEL ?= 2
# A build for CPUs is enough: where the index has none, pass a file.
TORCH   ?= torch==2.13.0

.PHONY: up test check format protos lock engines bench clean

up: $(VENV)/.runtime
	$(BIN)/penstock up $(UP)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(PARALLEL) --dist loadfile $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(wildcard $(addsuffix /.,$(CODE)))
	$(BIN)/lint-imports
	$(BIN)/python build/contracts.py lint
	$(BIN)/python build/contracts.py breaking
	$(BIN)/python build/protos.py --check
	$(BIN)/python build/scan.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/.dev
	$(BIN)/python build/protos.py

engines: $(VENV)/.engines

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.serving --empty
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.encoder
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks.placement
	$(BIN)/python -m benchmarks.simulation
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.response_cache
	$(BIN)/python -m benchmarks.request_log
	$(BIN)/python -m benchmarks.edge_hop
	$(BIN)/python -m benchmarks.gateways
	$(BIN)/python -m benchmarks.faults.etcd_away
	$(BIN)/python -m benchmarks.faults.churn
	$(BIN)/python -m benchmarks.faults.kill_worker
	$(BIN)/python -m benchmarks.faults.client_gone
	$(BIN)/python -m benchmarks.faults.front_door

# Pins and hashes only: no download address ever enters a lock file.
lock:
	uv pip compile pyproject.toml --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q -o requirements/runtime.txt
	uv pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q -o requirements/dev.txt
	uv pip compile requirements/engines.in --no-deps --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q -o requirements/engines.txt
	uv pip compile requirements/build.in -c requirements/dev.txt --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q -o requirements/build.txt

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "penstock needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.txt requirements/build.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing Penstock into $(VENV) (a minute or two, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/.engines: requirements/engines.txt $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/engines.txt
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TORCH)
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
