# Everything a newcomer needs: `make demo`, `make test`. Each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test lint docs clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "bld needs Python 3.11 or newer; set PYTHON=…"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

setup: $(VENV)/.installed  ## Make .venv with everything in it

demo: $(VENV)/.installed  ## Train and sample on the embedded digits (minutes on two CPU cores)
	$(BIN)/bld demo

test: lint  ## Lint, check types, run all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed  ## Ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## Build the documentation into site/, every broken link an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## Remove the environment, the demo's run and the built documentation
	rm -rf $(VENV) demo site
