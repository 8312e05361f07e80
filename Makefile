# Everything a developer does here. Each target makes what it needs in .venv; nothing else is installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Further words for pytest: make test ARGS="-k progress -x"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench soak wheel matrix clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.core ## see the library work; needs no broker
	$(BIN)/python -m celery_statekit.demo

test: $(VENV)/.test ## run every test and every example of the docs
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

lint: $(VENV)/.lint ## style and types: ruff, mypy, pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs ## build the documentation into docs/_build
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.bench ## measure what things cost on this machine
	$(BIN)/python -m benchmarks

soak: $(VENV)/.test ## break stores while clients are updated, and workers while tasks run; about 2.5 hours
	$(BIN)/python -m soak --full
	$(BIN)/python -m soak.lost --full
	STATEKIT_SOAK=long $(BIN)/python -m pytest tests/kit/test_lost_replies.py $(ARGS)

wheel: $(VENV)/.matrix ## test the built wheel with the oldest of everything, and without any extra
	$(BIN)/nox --tags ci

matrix: $(VENV)/.matrix ## test the built wheel on every Python and Celery that is supported
	$(BIN)/nox $(ARGS)

clean: ## remove what the other targets made
	rm -rf $(VENV) .nox .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build dist build
	find src tests docs examples -name __pycache__ -prune -exec rm -rf {} +

# The stamps: .core is the library alone, as a user installs it; the others add one extra each.
$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -e .
	@touch $@

$(VENV)/.%: $(VENV)/.core
	$(PIP) install -q -e ".[$*]"
	@touch $@
