# Every target sets up what it needs, once: a virtual environment in VENV with exitbench installed
# in editable mode. VENV may also name an environment that exists already.

VENV ?= .venv
PYTHON ?=
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.exitbench-installed
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)

.DEFAULT_GOAL := help
.PHONY: help venv install demo test bench benchmarks lint types wheel check clean FORCE
.DELETE_ON_ERROR:

# The stamp names the checkout that was installed: an environment shared by two checkouts must
# not run the code of the other one.
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

help:  ## Show this list
	@echo "usage: make TARGET [VENV=DIR] [PYTHON=PROGRAM] [ARGS='options of the program']"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1@\2/p' Makefile | column -t -s @ 2>/dev/null \
	  || sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1: \2/p' Makefile

venv: $(BIN)/python  ## Create the virtual environment (default .venv)

install: $(STAMP)  ## Install exitbench and its tools into the environment

demo: $(STAMP)  ## Run the whole path on the embedded dataset; ends with the report's path
	@"$(BIN)/exitbench" demo $(ARGS)

test: $(STAMP)  ## Run the tests
	@"$(BIN)/pytest" $(ARGS)

bench: $(STAMP)  ## Measure how far the goals of speed are: 25 minutes, or ARGS=--quick
	@"$(BIN)/python" benchmarks/goals.py $(ARGS)

# goals.py takes long and has a target of its own; goal_*.py are its modules.
benchmarks: $(STAMP)  ## Run the other scripts in benchmarks/
	@set -e; for script in $(filter-out benchmarks/goal%,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; "$(BIN)/python" "$$script" $(ARGS); \
	done

lint: $(STAMP)  ## Check style and imports with ruff
	@"$(BIN)/ruff" check . $(ARGS)

# The checkout is the package exitbench only by pyproject.toml's package-dir, which mypy does not
# read; a link gives it a folder of that name.
types: $(STAMP)  ## Check types with mypy
	@mkdir -p build/types && ln -sfn ../.. build/types/exitbench
	@"$(BIN)/mypy" $(ARGS)

# What an earlier build left in build/lib would end up in the wheel, deleted modules included.
wheel: $(STAMP)  ## Build the wheel into dist/
	@rm -rf dist build/lib build/bdist.*
	@"$(BIN)/python" -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

check: lint types test  ## Run lint, types and tests

clean:  ## Remove what was built; keeps the environment, runs and data
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find benchmarks harness models profiles reports tests -name __pycache__ -prune \
	  -exec rm -rf {} +

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "creating the environment $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv "$(VENV)" && exit 0; \
	    echo "'$$python -m venv' failed; on Debian and Ubuntu install python3-venv, or name" \
	      "another Python with PYTHON=PROGRAM" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "exitbench needs Python 3.11 or newer; tried: $(CANDIDATES). Install one, or name it" \
	  "with PYTHON=PROGRAM" >&2; \
	exit 1

$(STAMP): pyproject.toml | $(BIN)/python
	@"$(BIN)/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(VENV) has $$("$(BIN)/python" --version 2>&1); exitbench needs Python 3.11 or newer." \
	    "Choose another folder with VENV=DIR, or remove that one" >&2; exit 1; }
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(BIN)/python" -m ensurepip >/dev/null
	@echo "installing into $(VENV); without a cached torch this downloads some GB"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@echo "$(CURDIR)" > "$@"
