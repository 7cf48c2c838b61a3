# Everything runs in .venv, which scripts/setup.py makes from the lock files. PYTHON chooses the interpreter.
PYTHON ?= python3
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup run test hunt check long bench lock build clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

setup: ## make or update .venv; does nothing when it is up to date
	@$(PYTHON) scripts/setup.py

run: setup ## start a node, ask the bundled tiny model, print answer and receipt, stop the node
	@$(PY) scripts/demo.py

test: setup ## all tests, by up to four workers
	-@$(PY) scripts/browser.py
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

hunt: setup ## property tests with ten times as many examples, new ones each time
	@MODELD_HUNT=10 $(PY) -m pytest -n auto --maxprocesses 4 -m hypothesis --timeout 0

check: setup ## lint, format, types, import contracts, drift of what is generated
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m mypy --strict scripts bench
	@.venv/bin/lint-imports
	@$(PY) scripts/proto.py --check
	@$(PY) scripts/provider_docs.py --check

long: setup ## soak, fault rounds and fuzzing at length; writes docs/long-run.md
	@$(PY) scripts/long.py

bench: setup ## node against bare loop, and import time; writes docs/benchmarks.md
	@$(PY) bench/compare.py --write
	@$(PY) bench/import_time.py --write
	@$(PY) bench/providers.py --write

lock: setup ## resolve the lock files anew (ARGS=--upgrade for newer versions)
	@$(PY) scripts/lock.py $(ARGS)

build: setup ## the wheel, into dist/
	@$(PY) -m build --wheel --no-isolation

clean: ## remove .venv, builds and caches
	rm -rf .venv build dist bench/models .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
