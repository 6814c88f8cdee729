# Every target first makes .venv, with the versions of constraints.txt, where it is missing or old.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Torch first and alone: with it installed, nothing pulls another build of it in.
TORCH := torch==2.13.0
# The tests of one file stay in one process, so that what they share is built once. A process that
# died is not replaced, because with loadfile xdist would then wait for its tests for ever.
PARALLEL := --numprocesses auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long check bench docs demo-sources demo-model clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: $(VENV)/.done ## install the package into .venv

demo: $(VENV)/.done ## build the bundled samples into out/demo and out/demo-scenes
	$(BIN)/fgbg build --demo --placements 2 --shard-records 100 out/demo
	$(BIN)/fgbg build --demo --layout scenes --records 200 --size 256 out/demo-scenes

test: $(VENV)/.dev ## run the default tests
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-long: $(VENV)/.dev ## run the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(PARALLEL)

check: $(VENV)/.dev ## run the linter, the formatter and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## run the benchmarks and print their tables
	$(BIN)/python benchmarks/compose.py
	$(BIN)/python benchmarks/depth.py
	$(BIN)/python benchmarks/read.py
	$(BIN)/python benchmarks/export.py

docs: $(VENV)/.dev ## write the parts of README and docs that repeat the code again
	$(BIN)/python -m docs.generate

demo-sources: $(VENV)/.dev ## render the bundled sources again
	$(BIN)/python -m factory.make_demo_sources

# The new model gets a folder of its own; copy it to builder/demo/depth if it is better everywhere.
MODEL := scratch/demo-model/model

demo-model: $(VENV)/.dev ## train the bundled depth model on and measure it (two hours on two cores; resumes)
	$(BIN)/python -m factory.train_densedepth builder/demo/depth $(MODEL)
	$(BIN)/python -m factory.measure_densedepth $(MODEL) builder/demo/depth --sheet $(MODEL)/depth.png

clean: ## delete the virtual environment and what was built
	rm -rf $(VENV) out dist
