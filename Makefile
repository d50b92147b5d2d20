# make demo    sweep the demo pair         make test       every test
# make lint    format, lint, types, docs   make test-unit  the tests that start no engine, cluster, store or browser
# make docs    the documents, build/docs   make test-fast  the quick ones of them
# All share one .venv, made on first use and quick when it is there.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
TORCH  := 2.13.0

# Importing vLLM without its compiled bytecode takes minutes of processor time over a test run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-unit test-fast lint docs setup clean

setup: $(VENV)/.ready

# PyTorch first, so that nothing later brings a CUDA build: a plain install where pip finds the CPU wheel, else PyTorch's own
# CPU wheel index, which uv knows. uv then leaves out what pyproject.toml excludes, which pip cannot.
$(VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)+cpu 2>/dev/null \
	  || $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu torch==$(TORCH)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[cpu,dev,docs]'
	touch $@

demo: setup
	$(BIN)/lambdasweep demo

# One process for each core, four at most: each starts engines. Files are not divided, so what a file starts is started once.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Whichever process has nothing left takes tests of another.
test-unit: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not real"

# It draws fewer examples, too.
test-fast: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not real and not slow" --hypothesis-profile fast

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory docs

# A warning ends it. Everything is read from this tree: no page needs the network, neither here nor in the reader's browser.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build *.egg-info
