# Two commands for a fresh machine: make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt $(shell find edges circuits exporters cli -type f -not -name '*.pyc')
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt --config-settings editable_mode=strict

.PHONY: demo test check figures clean

demo: $(VENV)/installed
	rm -rf out/demo
	$(BIN)/wiremap discover --out out/demo
	@echo
	@echo "the picture: out/demo/circuit.svg     for Gephi: out/demo/circuit.graphml"

# Annotations are checked in tests of edges alone (tests/conftest.py).
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 tests/edges
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --ignore tests/edges

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# What the code is like, counted.
figures: $(VENV)/installed-test
	$(BIN)/python benchmarks/house.py

clean:
	rm -rf $(VENV) build out *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Installed again whenever a file comes or goes: the strict editable install links each by name.
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/installed
