# `make` alone prints the targets. Every target installs first if .venv is missing or pyproject.toml changed.
.DEFAULT_GOAL := help
.PHONY: help setup doctor lock audit train eval generate plan data board sweep agent bench soak kernels test test-slow test-all lint format docs clean

BIN := .venv/bin
STAMP := .venv/.installed
PIP = $(BIN)/python -m pip install --disable-pip-version-check
INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# The first of these that runs; another one: make setup PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c '' 2>/dev/null && echo $$p && break; done)
# An extra package index, for example PyTorch's own one of small CPU builds
TORCH_INDEX ?=
# LOCK=1: exactly what requirements.lock names, hashes checked
LOCK ?=
# EXP=name is experiment=name; ARGS="..." goes to the script as it is
EXP ?=
CKPT ?=
PROMPT ?=
SWEEP ?=
ID ?=
ARGS ?=

# A file's tests stay together: they share what is slow to set up. One thread each, or they wait for one another.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

help: ## Print this list
	@echo "usage: make TARGET [EXP=name] [ARGS=\"key=value ...\"] [PYTHON=python3.11] [TORCH_INDEX=url]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install the project into it

$(STAMP): pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: PYTHON=$(PYTHON): Python 3.11, 3.12 or 3.13 is needed; install one or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "error: PYTHON=$(PYTHON): has no venv module; install it (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing into .venv: the first time takes some minutes, torch is large."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifeq ($(LOCK),)
	$(PIP) $(INDEX) --editable ".[test]"
else
	$(PIP) --require-hashes --no-deps --requirement requirements.lock
	$(PIP) $(INDEX) "$$(sed -n 's/^ *"\(torch==[^"]*\)",$$/\1/p' pyproject.toml)"
	$(PIP) --no-deps --no-build-isolation --editable .
endif
	@touch $@

doctor: ## What this machine offers a run, and what is wrong with it
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) scripts/doctor.py $(ARGS)

lock: $(STAMP) ## Pin the versions installed here in requirements.lock, with hashes; needs uv
	$(BIN)/python scripts/lock.py

audit: $(STAMP) ## Check the installed packages, also for known vulnerabilities; needs pip-audit
	$(BIN)/python scripts/audit.py

train: $(STAMP) ## Train: the experiment `tiny`, or EXP=name; ARGS="trainer.max_steps=100 seed=2"
	$(BIN)/python src/train.py $(if $(EXP),experiment=$(EXP)) $(ARGS)

eval: $(STAMP) ## Validate a checkpoint: the newest one, or CKPT=path
	$(BIN)/python src/eval.py ckpt_path=$(or $(CKPT),last) $(ARGS)

# The prompt goes through the environment, unexpanded: neither make nor the shell reads it.
generate: override export PROMPT := $(value PROMPT)
generate: $(STAMP) ## Write text with a checkpoint: the newest one, or CKPT=path; PROMPT="def main():"
	$(BIN)/python src/generate.py ckpt_path=$(or $(CKPT),last) "prompt=$$PROMPT" $(ARGS)

plan: $(STAMP) ## Memory, traffic and time of a run on GPUs that are not here; EXP=7b ARGS="trainer.devices=8"
	$(BIN)/python src/plan.py $(if $(EXP),experiment=$(EXP)) $(ARGS)

data: $(STAMP) ## Look at data before training on it; ARGS="data=files data.source.paths=[corpus]"
	$(BIN)/python scripts/show_data.py $(if $(EXP),experiment=$(EXP)) $(ARGS)

board: $(STAMP) ## Show the curves of all runs in a browser (TensorBoard); ARGS="--port 6007"
	$(BIN)/python -m tensorboard.main --logdir logs $(ARGS)

sweep: $(STAMP) ## Create a sweep in Weights & Biases from configs/sweep/; SWEEP=lr
	$(BIN)/wandb sweep $(ARGS) configs/sweep/$(or $(SWEEP),lr).yaml

# An agent starts `python`, and has to outlive runs that fail.
agent: $(STAMP) ## Work on a sweep: ID=<what make sweep printed>; start as many as you like
	@test -n "$(ID)" || { echo "error: ID: give the sweep's, as make agent ID=name/litmegalodon/abcd1234; make sweep prints it" >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" WANDB_AGENT_DISABLE_FLAPPING=true WANDB_AGENT_MAX_INITIAL_FAILURES=1000 \
		$(BIN)/wandb agent $(ARGS) $(ID)

bench: $(STAMP) ## Time a training step and the operators on the CPU; ARGS="--only memory"
	$(BIN)/python benchmarks/cpu.py $(ARGS)

soak: $(STAMP) ## Ten minutes of kills, signals, a full disk, damage and NaN; ARGS="--seed 2"
	$(BIN)/python benchmarks/soak.py $(ARGS)

kernels: $(STAMP) ## Compile the GPU kernels without a GPU: registers, bytes, rooflines
	$(BIN)/python benchmarks/kernels.py $(ARGS)

test: $(STAMP) ## Run the quick tests, in WORKERS=2 processes
	$(PYTEST) -m "not slow" -rs $(ARGS)

test-slow: $(STAMP) ## Run the slow tests: several processes, whole runs
	$(PYTEST) -m slow -rs $(ARGS)

test-all: test test-slow ## Run both

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable silences an advertisement of a successor that plugins do not support.
docs: $(STAMP) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

clean: ## Remove caches and build leftovers (not .venv, not logs)
	rm -rf site .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist src/*.egg-info benchmarks/.cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
