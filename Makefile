# Everything runs in .venv, which is made and filled by the first target that needs it:
# `make demo` and `make test` work on a machine that has only Python and make.

PYTHON ?= python3
STRESS_SECONDS ?= 120
PYTEST_ARGS ?=
JOBS ?= 3

BIN := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check lint types format coverage bench stress docs dist clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo ## See the pool at work on a real server
	$(BIN)/python -m psycopg2_pool2 demo

check: lint types test ## Do all that CI does

lint: .venv/.dev ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev ## Check types, the tests' too
	$(BIN)/mypy

test: .venv/.dev .venv/.uwsgi ## Run the tests (PYTEST_ARGS='-k fork -x' to choose)
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

coverage: .venv/.dev .venv/.uwsgi ## Run the tests and show the lines they missed
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

stress: .venv/.dev ## Run the stress tests for STRESS_SECONDS (120)
	STRESS_SECONDS=$(STRESS_SECONDS) $(BIN)/python -m pytest -m stress --timeout=0 tests/stress $(PYTEST_ARGS)

bench: .venv/.bench ## Measure against other pools
	$(BIN)/python -m tests.bench

format: .venv/.dev ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.docs ## Build the documentation into build/docs
	$(BIN)/sphinx-build -W --keep-going -b html docs build/docs

dist: .venv/.dist ## Build what would be published, into dist, and try it with every Python here
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.wheel dist/*.whl

clean: ## Remove everything that make has made
	rm -rf .venv build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find psycopg2_pool2 tests -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv/.X says that .venv holds this project with its extra X, as setup.cfg has it now.
.venv/.%: setup.cfg pyproject.toml | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# uWSGI is compiled from source, which not every machine can do.
.venv/.uwsgi: setup.cfg | .venv/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[uwsgi]' || \
	  echo "make: uWSGI cannot be compiled here, as the message above says; its tests skip" >&2
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: '$(PYTHON)' is not Python 3.10 or newer; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv .venv && test -x $@ || \
	  { rm -rf .venv; \
	    echo "make: '$(PYTHON) -m venv .venv' failed, as its message above says." >&2; \
	    echo "make: on Debian and Ubuntu, install python3-venv; or name another Python: make PYTHON=..." >&2; \
	    exit 1; }
