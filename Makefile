# The main targets: demo, test, test-all, lint, docs, wheel, bench. Each sets up what it needs; later calls are fast.
PYTHON ?= python3.12
BIN := .venv/bin
READY := .venv/.ready
# Several processes beside each other: tests/scheduling.py.
TESTS := $(BIN)/python -m pytest --numprocesses=auto --durations=25 --durations-min=1 --cov --cov-report=
DOCS := build/docs-venv
# pip compiles on one core, this on all, but not the models and tests of which hardly any is ever imported. Like pip,
# it goes on after a file that is not for this Python.
COMPILE = $(BIN)/python -W ignore -m compileall -qq -j 0 -x '/(transformers|vllm/model_executor)/models/|/tests?/' .venv/lib || true

.PHONY: demo demo-serve demo-vlm demo-guidance test test-all prepared coverage lint docs wheel ssh slurm bench bench-hetero layouts hetero-layouts layer-memory conversions soak fuzz catalog lock clean

demo: $(READY)        ## train the demo model on real text and draw its loss
	$(BIN)/python tools/demo.py

demo-serve: $(READY)  ## train the demo model if needed, convert it, serve it, query it, and stop
	$(BIN)/python tools/demo_serve.py

demo-vlm: $(READY)    ## train a model on pictures, convert it, serve it, ask it to count, and compare it with a blind one
	$(BIN)/python tools/demo_vlm.py

demo-guidance: $(READY) ## ask one prompt at several scales of guidance, and measure the effect; draw with a random Emu3
	$(BIN)/python tools/demo_guidance.py

test: prepared        ## what CI runs: lint, types, all tests that take minutes at most, coverage
	$(TESTS)
	$(MAKE) --no-print-directory coverage

test-all: prepared    ## the same with the slow tests
	$(TESTS) --slow
	$(MAKE) --no-print-directory coverage

# mypy uses one core. Beside it, pytest compiles the test files, which each of its processes would else do for itself;
# what is wrong with a file is reported by the tests.
prepared: $(READY)
	$(BIN)/python -m pytest --collect-only --quiet >/dev/null 2>&1 & $(MAKE) --no-print-directory -j2 lint slurm && wait

# Ranks and engines run untraced, as tracing would double their startup time: the second figure is a lower bound.
coverage:             ## report the last tests' coverage: control plane (at least 90 %), then data plane
	$(BIN)/coverage report --include='flagscale/*' --skip-covered --fail-under=90
	$(BIN)/coverage report --include='megatron/*,megatron-energon/*,vllm/*' --skip-covered

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A separate environment, because the generator needs no engine and the engines do not need the generator.
docs: $(DOCS)/.ready  ## the doc site, build/site/index.html; a broken link or anchor is an error
	$(DOCS)/bin/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet -c docs . build/site

wheel: $(READY)       ## build/dist/*.whl: FlagScale without a clone
	rm -rf build/lib build/bdist.*
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/dist .

# If a service manager runs, installing a package would start its daemons: that is the user's decision.
# Arguments: the tests, the programs that they need, the packages of these.
define INSTALL
@PATH="$$PATH:/usr/sbin:/sbin"; \
complete() { for program in $(2); do command -v $$program || return; done; } >/dev/null; \
if complete; then exit; fi; \
if [ "$$(id -u)" = 0 ] && [ ! -d /run/systemd/system ] && command -v apt-get >/dev/null; then \
	echo "installing $(3) ..."; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq update >/dev/null && apt-get -qq install --no-install-recommends $(3) >/dev/null; \
fi; \
complete || echo "the $(1) tests will be skipped: they need the packages $(3)"
endef

ssh:                  ## the packages that the SSH tests need; without them, those tests are skipped
	$(call INSTALL,SSH,sshd ssh ip,openssh-server openssh-client iproute2)

# After `ssh`: only one apt-get can run at a time.
slurm: ssh            ## the packages that the Slurm tests need; without them, those tests are skipped
	$(call INSTALL,Slurm,slurmctld slurmd munged sbatch,slurm-wlm munge)

bench: $(READY)       ## the launcher's overhead against plain torchrun, in one run
	$(BIN)/python benchmarks/launch_overhead.py

bench-hetero: $(READY) ## unequal chips together against each kind alone; ordinary jobs with and without meshes
	$(BIN)/python -m benchmarks.hetero

layouts: $(READY)     ## every parallel layout against one process: the table of docs/layouts.md
	$(BIN)/python -m benchmarks.layouts

hetero-layouts: $(READY) ## unequal meshes against one process: the table of docs/hetero.md
	$(BIN)/python -m benchmarks.hetero_layouts

layer-memory: $(READY) ## what each kind of layer keeps for its backward pass: the planner's table, and those of docs/layers.md
	$(BIN)/python -m benchmarks.layer_memory --write

conversions: $(READY) ## every model family to Megatron and back, with training between: the table of docs/conversion.md
	$(BIN)/python -m benchmarks.conversion_table

instruction-tuning: $(READY) ## conversations in every layout against transformers: the table of docs/instruction_tuning.md
	$(BIN)/python -m benchmarks.instruction_tuning

soak: $(READY) ssh    ## 200 random starts, kills and stops on four hosts; no process may be left over
	$(BIN)/python -m benchmarks.soak

fuzz: $(READY)        ## 10 000 configurations and command lines with slips: no traceback, nothing written
	$(BIN)/python -m tests.fuzz

catalog: $(READY)     ## record every argument of the installed engines, and the defaults of Hugging Face's configurations
	$(BIN)/python -m megatron.flagscale.catalog > build/catalog.json
	mv build/catalog.json flagscale/engines/catalog/megatron.json
	$(BIN)/python -m vllm_flagscale.catalog > build/catalog.json
	mv build/catalog.json flagscale/engines/catalog/vllm.json
	$(BIN)/python -m megatron.flagscale.evaluation.catalog > build/catalog.json
	mv build/catalog.json flagscale/engines/catalog/lm_eval.json
	$(BIN)/python -m megatron.flagscale.convert.hf_defaults > build/catalog.json
	mv build/catalog.json megatron/flagscale/convert/hf_defaults.json

lock: $(READY)        ## record the installed versions
	sed -n '/^#/p' requirements/constraints.txt > build/constraints.txt
	$(BIN)/pip freeze --exclude-editable >> build/constraints.txt
	mv build/constraints.txt requirements/constraints.txt

clean:                ## delete everything that make wrote, but no runs and no data
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(DOCS)/.ready: pyproject.toml
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --constraint requirements/constraints.txt --editable '.[docs]'
	touch $(DOCS)/.ready

$(READY): pyproject.toml requirements/constraints.txt tools/install_vllm.py
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is required: install Python 3.12, or choose an interpreter: make PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { echo "$(PYTHON) is not Python 3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the engines and tools into .venv (about 7 GB; takes minutes the first time) ..."
	PIP_COMPILE=0 $(BIN)/pip install --quiet --constraint requirements/constraints.txt --editable '.[train,vlm,evaluate,dev]'
	@# pip uses one core, so another one compiles meanwhile what is there already.
	$(COMPILE) & PIP_COMPILE=0 $(BIN)/python tools/install_vllm.py && wait
	$(COMPILE)
	mkdir -p build
	touch $(READY)
