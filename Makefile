# Everything a contributor runs. Each target first makes the environment it needs, once, in .venv.
#
#   make demo   train, evaluate and draw on built-in scenes      make test   the fast tests
#   make lint   style and types                                  make bench  what is timed
#   make torture   trainings that are killed, files that are hostile: half an hour on two cores

PYTHON ?= python3
BIN := .venv/bin
# One thread a test process, and a process more than there are cores, at most four: tests wait for disks and children.
PROCESSES = $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() + 1))")
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

.PHONY: help setup demo test test-slow test-oldest torture lint format bench dist clean

help: # the default: the lines above
	@sed -n "3,5s/^# *//p" Makefile

setup: .venv/.installed

# Made anew when the dependencies change. constraints.txt: the versions that the tests have passed with;
# constraints-oldest.txt: the oldest that pyproject.toml allows. uv takes a fifth of pip's time, but does not read pip's
# settings: where these name another index, pip does the work. The bytecode of the packages' own tests is not needed.
.venv/.installed: constraints.txt
.venv-oldest/.installed: constraints-oldest.txt
.venv/.installed .venv-oldest/.installed: VERSIONS = --constraint $(filter constraints%,$^)
.venv/.installed .venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --no-compile $(VERSIONS) uv
	$(@D)/bin/uv pip install --python $(@D) $(VERSIONS) --editable '.[dev]' || \
	  $(@D)/bin/python -m pip install --no-compile $(VERSIONS) --editable '.[dev]'
	-$(@D)/bin/python -m compileall -qq -j 0 -x /tests/ $(@D)/lib
	touch $@

demo: setup
	$(BIN)/retinaconf demo --out demo

test: setup # CI=1: also those that take a second and more
	$(PYTEST) -m "not slow and not torture$(if $(CI),, and not ci)"

test-slow: setup
	$(PYTEST) -m slow

# What CI tests, with the oldest dependencies, in an environment of its own.
test-oldest: BIN := .venv-oldest/bin
test-oldest: .venv-oldest/.installed
	$(PYTEST) -m "not slow and not torture"

torture: setup
	$(PYTEST) -m torture

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --num-workers 2

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup # QUICK=--quick: in about three minutes
	$(BIN)/python benchmarks/bench.py $(QUICK)

# A source distribution, a wheel that is made from it, and a list of all packages in .venv with their versions and
# licences (a software bill of materials, in CycloneDX's format).
dist: setup
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[release]'
	$(BIN)/python -m build --no-isolation
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.cdx.json .venv

# What the targets above have made. Your runs (runs/) stay.
clean:
	rm -rf .venv .venv-oldest build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
