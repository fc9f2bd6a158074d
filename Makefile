# Every target sets up what it needs. Pass flags through ARGS, as in: make quickstart ARGS=--help. TIER=pick-place is harder.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONPATH # ROS sets it, and its packages and pytest plug-ins are not ours

TIER = quickstart

.PHONY: help setup quickstart test check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv from uv.lock; finds or installs uv and Python by itself
	@scripts/setup

quickstart: setup ## drive a robot arm from a frozen Pixio encoder, in about ten minutes on two cores, without a GPU
	.venv/bin/python scripts/run_benchmark.py tier=$(TIER) $(ARGS)

test: setup ## run the tests that need no GPU, no network and no patience
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 $(ARGS)

check: ## run what must pass before a commit: format, lint, types, arrows, tests (ARGS=--fix repairs first)
	@scripts/check $(ARGS)

clean: ## remove .venv, caches and builds; outputs/, which may hold nights of work, stays
	rm -rf .venv .uv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
