# Everything a developer or CI runs. `make help` lists it; nothing is needed beforehand but Python, make and git.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# A uv that is installed is used; otherwise one is put into .uv/ with pip.
UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.uv/bin/uv)
RUN := $(UV) run --no-sync
SYNCED := .venv/.synced

LIBS := contracts features models runtime sdk testkit
SERVICES := ingestion feature training registry serving monitoring
PACKAGES := tidemill $(addprefix tidemill_,$(filter-out sdk,$(LIBS)) $(SERVICES))
MANIFESTS := pyproject.toml uv.lock $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
WITHOUT_SERVERS := not servers and not e2e

.PHONY: help install gen lint types imports protos unit check servers e2e members test demo bench chaos up down clean

help: ## List every target with what it does.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(SYNCED) ## Install everything that uv.lock names into .venv/.

$(CURDIR)/.uv/bin/uv:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make a virtual environment: on Debian or Ubuntu install the package python3-venv" \
			"(sudo apt install python3-venv), then run make again." >&2; exit 1; }
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<0.14'

$(SYNCED): $(MANIFESTS) | $(UV)
	$(UV) sync --locked --compile-bytecode
	@touch $@

gen: $(SYNCED) ## Generate the code of the contracts, the reference of settings and metrics, and asyncapi.yaml.
	$(RUN) python proto/generate.py
	$(RUN) python docs/generate.py

lint: $(SYNCED)
	$(RUN) ruff check .

# Test modules of different members share names, so each folder is checked by itself.
types: $(SYNCED)
	$(RUN) mypy $(addprefix -p ,$(PACKAGES))
	@for folder in $(sort $(dir $(wildcard libs/*/tests/*.py services/*/tests/*.py tests/*/*.py))); do \
		echo "mypy $$folder"; $(RUN) mypy "$$folder" || exit 1; done

imports: $(SYNCED)
	$(RUN) lint-imports

protos: $(SYNCED)
	$(RUN) buf lint proto
	$(RUN) .ci/breaking
	$(RUN) python proto/generate.py --check

unit: $(SYNCED)
	$(RUN) pytest -q -m '$(WITHOUT_SERVERS)'

check: lint types imports protos unit ## Lint, type-check, check import rules and contracts, run the tests that need no server (under a minute).

servers: $(SYNCED) ## Run the tests that need the real Kafka, Redis and PostgreSQL; they are started for it.
	$(RUN) pytest -q -m 'servers and not e2e'

e2e: $(SYNCED) ## Run the tests that drive the six services as separate processes.
	$(RUN) pytest -q -m e2e

members: $(SYNCED) ## Run each member's tests alone, in an environment with only what it declares.
	$(RUN) python .ci/members.py $(UV)

test: check members servers e2e ## Run everything CI runs.

demo: $(SYNCED) ## Watch a year of real flights go through the whole loop, in a few minutes.
	$(RUN) tidemill demo

bench: $(SYNCED) ## Measure the hot paths against baselines and write build/bench.json.
	$(RUN) python tests/bench/run.py

chaos: $(SYNCED) ## Live 200 seeded runs of crashes, zombies and lost writes (RUNS=20 for fewer, FIRST=201 for others, SEED=7 for one).
	$(RUN) python tests/chaos/run.py $(if $(RUNS),--runs $(RUNS)) $(if $(FIRST),--first $(FIRST)) \
		$(if $(SEED),--seed $(SEED)) $(if $(FAULT),--fault $(FAULT))

up: $(SYNCED) ## Start the local stack: Kafka, Redis, PostgreSQL and the six services.
	$(RUN) tidemill up

down: $(SYNCED) ## Stop the local stack and keep its data.
	$(RUN) tidemill down

clean: ## Remove what was built and cached; the environment and the local stack's data stay.
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find libs services tests -name __pycache__ -type d -prune -exec rm -rf {} +
