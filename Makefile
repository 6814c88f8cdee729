# Every target makes its own .venv from constraints.txt when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Torch first and alone: with it installed, nothing pulls another build of it in.
TORCH := torch==2.13.0
# One file's tests stay in one process, so that what they build together is built once. A process
# that died is not replaced: with loadfile, xdist then waits for its tests for ever.
PARALLEL := --numprocesses auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-long check bench demo-sources demo-model clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(VENV)/.done ## build the bundled sample into out/demo
	$(BIN)/fgbg build --demo --placements 2 --shard-records 100 out/demo

test: $(VENV)/.done ## run the default tests
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-long: $(VENV)/.done ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(PARALLEL)

check: $(VENV)/.done ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.done ## print the benchmarks
	$(BIN)/python benchmarks/compose.py
	$(BIN)/python benchmarks/depth.py
	$(BIN)/python benchmarks/read.py

demo-sources: $(VENV)/.done ## render the bundled sources again
	$(BIN)/python -m training.make_demo_sources

# It goes to a folder of its own: put it into builder/demo/depth if it is better everywhere.
MODEL := scratch/demo-model/model

demo-model: $(VENV)/.done ## train the bundled depth model on and measure it (two hours on two cores; resumes)
	$(BIN)/python -m training.train_densedepth builder/demo/depth $(MODEL)
	$(BIN)/python -m training.measure_densedepth $(MODEL) builder/demo/depth --sheet $(MODEL)/depth.png

clean: ## delete the virtual environment and what was built
	rm -rf $(VENV) out dist
