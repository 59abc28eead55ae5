# One word each: demo, test, test-all, lint, bench. Each sets up .venv first; the second call is fast.
PYTHON ?= python3.12
BIN := .venv/bin
READY := .venv/.ready
DEMO := --config-path ./examples/aquila/conf --config-name config

.PHONY: demo test test-all lint bench layouts catalog lock clean

demo: $(READY)        ## train the demo model on real text and draw its loss
	$(BIN)/python tools/demo.py

test: lint            ## what CI runs: lint, types, all tests that fit in minutes, coverage of flagscale/
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=90

test-all: lint        ## the slow ones too
	$(BIN)/python -m pytest --slow --cov --cov-report=term:skip-covered --cov-fail-under=90

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)       ## the launcher's overhead against plain torchrun, in one run
	$(BIN)/python benchmarks/launch_overhead.py

layouts: $(READY)     ## every parallel layout against one process: the table of docs/layouts.md
	$(BIN)/python -m benchmarks.layouts

catalog: $(READY)     ## every argument of the installed engine, for the checks before a launch
	$(BIN)/python -m megatron.flagscale.catalog > build/catalog.json
	mv build/catalog.json flagscale/engines/catalog/megatron.json

lock: $(READY)        ## write down the versions that are installed now
	sed -n '/^#/p' requirements/constraints.txt > build/constraints.txt
	$(BIN)/pip freeze --exclude-editable >> build/constraints.txt
	mv build/constraints.txt requirements/constraints.txt

clean:                ## everything that make wrote, but no run and no data
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(READY): pyproject.toml requirements/constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is needed: install Python 3.12, or name it: make PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { echo "$(PYTHON) is not Python 3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the engine and tools into .venv (about 5 GB; minutes the first time) ..."
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt --editable '.[train,dev]'
	mkdir -p build
	touch $(READY)
