# `make demo` and `make test` do all of their own set-up on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup test test-all demo demo-acrobot demo-cartpole demo-freeway bench soundness lint docs clean

setup: $(STAMP)

# torch first: a plain range would pull gigabytes of CUDA packages on a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	@touch $(STAMP)

# Files of tests are shared out to this many processes: one more than two cores, since some tests wait for another process to be missed.
TEST_PROCESSES ?= 3

test: setup
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

test-all: setup
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m 'slow or not slow'

demo: setup
	$(BIN)/python jobs/demo.py lunarlander

demo-acrobot: setup
	$(BIN)/python jobs/demo.py acrobot

demo-cartpole: setup
	$(BIN)/python jobs/demo.py cartpole

demo-freeway: setup
	$(BIN)/python jobs/demo.py freeway

bench: setup
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/accounting.py
	$(BIN)/python benchmarks/bags.py

soundness: setup
	$(BIN)/python benchmarks/soundness.py

lint: setup
	$(BIN)/pip install --quiet -c constraints.txt -e '.[lint]'
	$(BIN)/ruff check
	$(BIN)/mypy

# Pages are written to build/docs.
docs: setup
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

clean:
	rm -rf $(VENV) runs build *.egg-info
