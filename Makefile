# Everything a contributor runs. Each target first makes the environment it needs, once, in .venv.
#
#   make demo   train, evaluate and draw on built-in scenes      make test   the fast tests
#   make lint   style and types                                  make bench  what is timed
#   make torture   trainings that are killed, files that are hostile: a quarter of an hour on two cores

PYTHON ?= python3
BIN := .venv/bin
# One thread a test process: as many processes as there are cores, at most four, already keep the machine busy.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: help setup demo test test-slow torture lint format bench clean

help: # the default: the lines above
	@sed -n "3,5s/^# *//p" Makefile

setup: .venv/.installed

# Made anew when the dependencies change. constraints.txt: the versions that the tests have passed with.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/retinaconf demo --out demo

test: setup
	$(PYTEST) -m "not slow and not torture"

test-slow: setup
	$(PYTEST) -m slow

torture: setup
	$(PYTEST) -m torture

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup
	set -e; for script in $(wildcard benchmarks/*.py); do $(BIN)/python "$$script"; done

# What the targets above have made. Your runs (runs/) stay.
clean:
	rm -rf .venv build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
