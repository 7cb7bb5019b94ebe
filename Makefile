# Needs Python 3.11 to 3.13, make and a C compiler; everything else goes into .venv.

PYTHON ?= python3
EXPERIMENT ?= experiments/quick.yaml
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
LOCK_VENV := build/lock-venv
VERSION_CHECK = $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(not (3, 11) <= v <= (3, 13) and \
	"Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11 ..." % v)'

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all lint format bench docs lock clean

help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(STAMP) ## Install everything into .venv (once)

$(STAMP): pyproject.toml requirements.lock
	@$(VERSION_CHECK)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[all,dev]' --constraint requirements.lock
	@touch $@

run: setup ## Run EXPERIMENT (experiments/quick.yaml) from data to report; more options in ARGS
	$(BIN)/python -m flows.full_experiment $(EXPERIMENT) $(ARGS)

test: lint ## Check the code and run the fast tests; pytest's options in ARGS
	$(BIN)/python -m pytest -m "not slow and not real_data" $(ARGS)

test-all: lint ## Check the code and run every test, also slow ones and those on real data
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure the speed of training, inference and Monte Carlo dropout on this machine, as ratios (minutes)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/speed.py --precision bfloat16

docs: setup ## Build the documentation's site from docs/ into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server -b 127.0.0.1 -d build/site 8000"

lock: ## Renew requirements.lock from pyproject.toml's ranges (minutes)
	@$(VERSION_CHECK)
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --editable '.[all,dev]'
	$(LOCK_VENV)/bin/python -m pip check
	{ grep '^#' requirements.lock; \
	  $(LOCK_VENV)/bin/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf $(LOCK_VENV)

clean: ## Remove .venv, caches and build products; results stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
