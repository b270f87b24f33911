# Two commands matter: `make demo` and `make test`. Each builds what it needs the first time and not again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test quick lint format train clean

demo: $(VENV)/.installed ## calibrate, plan, apply and measure on the shipped reference model
	$(BIN)/lookless demo --out lookless-demo

test: lint $(VENV)/.installed-dev ## everything CI runs
	$(BIN)/python -m pytest

quick: $(VENV)/.installed-dev ## the tests that take seconds
	$(BIN)/python -m pytest -m "not long"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/.installed ## retrain the reference model from nothing; hours; resumes
	$(BIN)/python training/train.py all

# The constraints are the exact versions the tests run on; without them pip may fetch gigabytes of another torch build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) lookless-demo .pytest_cache .mypy_cache .ruff_cache
