# Two commands for a fresh machine: make demo, make test. With a network also: make demo-real.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt $(shell find edges circuits exporters cli -type f -not -name '*.pyc')
# What is imported is compiled then; all of torch and transformers takes longer than the rest here.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	--constraint constraints.txt --config-settings editable_mode=strict

.PHONY: demo demo-real test check figures clean

demo: $(VENV)/installed
	rm -rf out/demo
	$(BIN)/wiremap discover --out out/demo
	@echo
	@echo "the picture: out/demo/circuit.svg     for Gephi: out/demo/circuit.graphml"

# A real language model, fetched once, and six of its circuits: one to two hours on two cores. What is
# finished in out/smollm2 is not run again.
demo-real: $(VENV)/installed-gguf
	$(BIN)/python -W ignore benchmarks/real_model.py --tasks --out out/smollm2
	@echo
	@echo "the circuits: docs/smollm2.md     runs, reports and viewers: out/smollm2"

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

$(VENV)/installed-gguf: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) --editable '.[gguf]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-test: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/installed
