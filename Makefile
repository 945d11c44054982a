# Needs Python 3.11 or newer and make; everything else is set up in .venv on first use and again
# only when pyproject.toml or constraints.txt changed.
#
#   make demo    the two-panel demonstration: plain and speculative, the same text
#   make test    the test suite
#   make check   ruff, mypy strict, the layering rules
#   make format  let ruff rewrite the layout
#
# On Linux the default torch build brings CUDA libraries of several gigabytes. To use a CPU build,
# point pip at an index that has one, for instance with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.paceline-ready
WORKERS ?= 2

# The first interpreter that runs and is new enough (a version manager's shim may be there and not
# run). 3.12 and 3.11 come first because constraints.txt is tested with them.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test check format clean
.DEFAULT_GOAL := check

# On the CPU, where it begins at once; a GPU compiles for most of a minute when it is first used.
demo: $(STAMP)
	@$(BIN)/paceline demo --device cpu $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

# torch first and by its exact version, so that no later requirement brings another build of it.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found;" \
		"install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@
