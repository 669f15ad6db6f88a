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
WITH_SERVERS := servers and not e2e

UNIT_TESTS := unit/libs unit/services unit/tests
# Folders whose tests share one set of servers; each starts its own, so that any number of them run side by side.
SERVER_TESTS := $(addprefix servers/,services/feature libs tests \
	$(addprefix services/,monitoring training ingestion serving registry))
E2E_TESTS := e2e/loop e2e/stack
# Folders that hold scripts beside their tests, and import them as the scripts do.
SCRIPTED := tests/chaos tests/bench tests/secured
# How many parts run at a time: on two cores one more than there are, since most of them wait for servers.
JOBS ?= 3
AT_ONCE = $(MAKE) --no-print-directory --jobs=$(JOBS) $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help install gen lint types imports protos unit doctests check servers e2e members test demo bench chaos up down clean \
	$(UNIT_TESTS) $(SERVER_TESTS) $(E2E_TESTS)

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
	$(RUN) ruff format --check .

# Test modules of different members share names, so their folders tell them apart.
types: $(SYNCED)
	$(RUN) mypy $(addprefix -p ,$(PACKAGES))
	$(RUN) mypy --explicit-package-bases \
		$(filter-out $(SCRIPTED),$(patsubst %/,%,$(sort $(dir $(wildcard libs/*/tests/*.py services/*/tests/*.py tests/*/*.py)))))
	@for folder in $(SCRIPTED); do $(RUN) mypy $$folder || exit 1; done

imports: $(SYNCED)
	$(RUN) lint-imports

protos: $(SYNCED)
	$(RUN) buf lint proto
	$(RUN) .ci/breaking
	$(RUN) python proto/generate.py --check

unit: $(SYNCED)
	@$(AT_ONCE) $(UNIT_TESTS)

$(UNIT_TESTS): unit/%: $(SYNCED)
	$(RUN) pytest -q -m '$(WITHOUT_SERVERS)' $*

# The examples in docstrings; to collect them imports every module.
doctests: $(SYNCED)
	$(RUN) pytest -q --doctest-modules $(wildcard libs/*/src services/*/src)

# Who checks between two edits waits for it: laws are tried with a third of their examples, others each time.
check: export TIDEMILL_TEST_SHARE ?= 0.33
check: $(SYNCED) ## Lint, type-check, check import rules and contracts, run the tests that need no server (about a minute).
	@$(AT_ONCE) $(UNIT_TESTS) doctests types lint imports protos

servers: $(SYNCED) ## Run the tests that need the real Kafka, Redis and PostgreSQL; they are started for it.
	@$(AT_ONCE) $(SERVER_TESTS)

$(SERVER_TESTS): servers/%: $(SYNCED)
	$(RUN) pytest -q -m '$(WITH_SERVERS)' $*

e2e: $(SYNCED) ## Run the tests that drive the six services as separate processes.
	@$(AT_ONCE) $(E2E_TESTS)

e2e/loop: $(SYNCED)
	$(RUN) pytest -q -m e2e tests/e2e/test_loop.py

e2e/stack: $(SYNCED)
	$(RUN) pytest -q -m e2e --ignore tests/e2e/test_loop.py tests/e2e

members: $(SYNCED) ## Run each member's tests alone, in an environment with only what it declares.
	$(RUN) python .ci/members.py $(UV)

# The longest first. The members' tests without servers run once, each member's in an environment of its own.
test: $(SYNCED) ## Run everything CI runs, JOBS parts at a time.
	@$(AT_ONCE) $(E2E_TESTS) members $(SERVER_TESTS) types unit/tests doctests lint imports protos

demo: $(SYNCED) ## Watch a year of real flights go through the whole loop, in a few minutes.
	$(RUN) tidemill demo

bench: $(SYNCED) ## Measure the hot paths against baselines and write build/bench.json.
	$(RUN) python tests/bench/run.py

chaos: $(SYNCED) ## Live 200 seeded runs of crashes, zombies, lost writes … (RUNS=20 for fewer, FIRST=201 for others, SEED=7 for one, FAULT=node for one kind).
	$(RUN) python tests/chaos/run.py $(if $(RUNS),--runs $(RUNS)) $(if $(FIRST),--first $(FIRST)) \
		$(if $(SEED),--seed $(SEED)) $(if $(FAULT),--fault $(FAULT))

up: $(SYNCED) ## Start the local stack: Kafka, Redis, PostgreSQL and the six services.
	$(RUN) tidemill up

down: $(SYNCED) ## Stop the local stack and keep its data.
	$(RUN) tidemill down

clean: ## Remove what was built and cached; the environment and the local stack's data stay.
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find libs services tests -name __pycache__ -type d -prune -exec rm -rf {} +
