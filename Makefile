PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-slow test-stores check lint types bench constraints clean

demo: $(VENV)/.installed  ## set up, then audit real data with corrupted labels
	$(BIN)/labelqa demo

test: $(VENV)/.installed-dev  ## set up, then run the tests, file by file on two processes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

test-stores: $(VENV)/.installed-dev build/stores/swift/.installed  ## set up object stores from npm and PyPI, then audit on them
	npm install --silent --no-audit --no-fund --prefix build/stores azurite@3
	$(BIN)/python -m pytest -m object_store

build/stores/swift/.installed:  # apart from ours, as its pins are its own
	$(PYTHON) -m venv build/stores/swift
	build/stores/swift/bin/python -m pip install --quiet 'swift~=2.38' 'setuptools<81'
	touch $@

check: lint types test  ## all that must hold before a change lands

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## print the tables of ratios of the README
	$(BIN)/python -m benchmarks

constraints:  ## pin what a fresh environment resolves to
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet '.[dev]'
	{ echo '# Made by "make constraints": the versions that the tests run with.'; \
	  build/constraints/bin/python -m pip freeze --exclude labelqa-dask; } > constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build demo
