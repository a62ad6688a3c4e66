# Everything a newcomer needs: `make demo`, `make test`. Each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test chromium lint docs clean

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

test: lint chromium  ## Lint, check types, run all tests
	$(BIN)/python -m pytest

chromium:  ## Install the browser that the studio is tested in, where it is missing and apt can
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null \
	    || echo "Chromium could not be installed: the studio's page cannot be tested."; \
	else echo "No Chromium is installed: the tests of the studio's page are skipped (as root, apt-get install chromium)."; fi

lint: $(VENV)/.installed  ## Ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## Build the documentation into site/, every broken link an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## Remove the environment, the demo's run and the built documentation
	rm -rf $(VENV) demo site
