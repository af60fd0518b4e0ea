# Trimtab. `make` lists the targets.
PYTHON := .venv/bin/python
TRIMTAB := .venv/bin/trimtab
CONFIG ?= conf-templates/demo.toml
OUT ?= var/render

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev setup-bench run test fuzz lint check bench train soak render-conf proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: system packages, and .venv
	@scripts/setup

setup-dev:
	@scripts/setup --dev

setup-bench:
	@scripts/setup --bench

run: setup ## the demo: round robin, least_conn, Trimtab under the same load (ARGS=stats.json saves statistics)
	@$(TRIMTAB) run $(ARGS)

test: setup-dev ## run the tests (ARGS='-k name' to choose, ARGS='-n 0 -s' to see what they print)
	@$(PYTHON) -m pytest -n 2 --dist loadfile $(ARGS)

fuzz: setup-dev ## a million random and mutated messages to the policy server (TRIMTAB_FUZZ_SEED=N)
	@TRIMTAB_FUZZ_MESSAGES=$${TRIMTAB_FUZZ_MESSAGES:-1000000} $(PYTHON) -m pytest --timeout 3600 tests/unit/test_server_fuzz.py $(ARGS)

lint: setup-dev ## ruff, mypy, luacheck, and whether the generated code is up to date
	@$(PYTHON) -m ruff check python tests
	@$(PYTHON) -m ruff format --check python tests
	@$(PYTHON) -m mypy
	@luacheck -q nginx tests/nginx
	@scripts/proto --check

check: test lint ## test and lint: what CI runs

bench: setup-bench ## compare balancers on the same seeded load (ARGS=--help for the options)
	@$(TRIMTAB) bench $(ARGS)

train: setup-bench ## train in the simulator (ARGS=--help for the options)
	@$(TRIMTAB) train $(ARGS)

soak: setup-dev ## minutes of load with faults at random; nothing may be lost (ARGS=--help for the options)
	@PYTHONPATH=tests $(PYTHON) -m soak $(ARGS)

render-conf: setup ## write the nginx configuration (CONFIG=trimtab.toml OUT=var/render ARGS='--mode stock')
	@$(TRIMTAB) render --config $(CONFIG) --output $(OUT) $(ARGS)

proto: setup-dev ## generate python/trimtab/v1 from proto/
	@scripts/proto

clean: ## remove what was built and what runs left behind (not .venv)
	rm -rf var build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
