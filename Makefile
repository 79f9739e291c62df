# tokenverse_pp: `make` lists what there is. Every target does its own set-up on a fresh Debian or Ubuntu machine.
#   PYTHON=python3.12   interpreter for the virtual environment (default: one from 3.9 on, 3.11 preferred)
#   TORCH_INDEX=URL     package index that torch comes from, e.g. PyTorch's one without CUDA (default: pip's own)
#   VENV=.venv          the virtual environment
#   WORKERS=2           processes that share the tests
#   ARGS=...            further arguments for pytest, e.g. ARGS='tests/tasks -x'

VENV ?= .venv
WORKERS ?= 2
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Small tensors on few cores: threads only get into each other's way. No test may reach for a model hub.
export OMP_NUM_THREADS ?= 1
TEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help venv test test-slow lint format demo demo-plan docs wheel k2-env bench-peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## the virtual environment with the tested versions

# Also completes a virtual environment that was made by hand.
$(STAMP): requirements.txt pyproject.toml .ci/venv.sh
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' .ci/venv.sh $(VENV)
	@touch $@

test: $(STAMP) ## the tests, except the slow ones
	$(TEST) --dist loadfile -m "not k2 and not slow" $(ARGS)

test-slow: $(STAMP) ## the slow tests: several processes, faults, complete pipelines, a model of 317 M parameters
	$(TEST) --dist worksteal -m "slow and not k2" $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: demo-plan $(STAMP) ## 15 minutes: teach a model tasks on human speech, decode, print the scores
	@PATH="$(abspath $(BIN)):$$PATH" recipes/human_speech/demo.sh

# Before the environment is made, which takes time and space too.
demo-plan:
	@recipes/human_speech/demo.sh plan

docs: $(STAMP) ## the pages of docs/ and recipes/, in site/index.html; broken links are errors
	$(BIN)/python -m mkdocs build --strict --quiet

wheel: $(STAMP) ## a wheel and a source distribution, in dist/
	rm -rf build dist
	$(BIN)/python -m build

k2-env: ## a second environment with real k2 (Python 3.9, torch 1.13; 3.4 GB), and the tests in it
	.ci/k2_env.sh --test

bench-peers: $(STAMP) ## build fast_rnnt, the peer of benchmarks/loss.py, from PyPI
	.ci/build_peers.sh $(BIN)/python

clean: ## remove caches (not the virtual environment, data or experiments)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
