# Each target sets up what it needs; `make setup` does nothing when that is done.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
BENCH_VENV := .venv-bench

NEW_ENOUGH = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12 …" % sys.version_info[:2])'

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit integration acceptance model chaos protections bench lint audit format lock clean

help: ## show what there is
	@grep -hE '^[a-z ]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## fill .venv from the lock

$(STAMP): requirements/dev.txt pyproject.toml
	$(NEW_ENOUGH)
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## the whole service at work, against a simulated provider
	$(BIN)/seedance demo

test: setup ## every test, in as many processes as pay [PARALLEL=0: in one]
	$(BIN)/python -m pytest -n $(or $(PARALLEL),auto)

unit integration acceptance: setup ## one tier of the tests
	$(BIN)/python -m pytest tests/$@

model: setup ## the submit protocol in every interleaving, wider bounds; random days [MODEL_STATES= MODEL_DAYS=]
	MODEL_BOUNDS=wide $(BIN)/python -m pytest tests/model tests/integration/test_stateful.py

chaos: setup ## the service broken on purpose: SEED=… N=300 [CHAOS="--json FILE"]
	$(BIN)/python -m tests.chaos.run $(if $(SEED),--seed $(SEED)) -n $(or $(N),300) $(CHAOS)

bench: $(BENCH_VENV)/.complete ## measure it beside what else one would use; 30 minutes [BENCH="--quick | --full | --out docs/benchmarks"]
	$(BENCH_VENV)/bin/python -m benchmarks.run $(BENCH)

# An environment of its own: the contenders are no part of the service.
$(BENCH_VENV)/.complete: requirements/bench.txt pyproject.toml
	$(NEW_ENOUGH)
	@rm -f $@
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lint: setup ## style, security rules, types, import rules, and that the lock holds together
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check --disable-pip-version-check

audit: ## known vulnerabilities in what is locked (needs uv, and an index that lists them)
	uvx pip-audit --strict --disable-pip --require-hashes -r requirements/prod.txt

format: setup ## let ruff tidy
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## renew the lock files from pyproject.toml (needs uv)
	uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -o requirements/dev.txt
	uv pip compile -q pyproject.toml --extra s3 --extra monitoring --extra simulator --extra gateway --extra sentry --extra otel --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -c requirements/dev.txt -o requirements/prod.txt
	uv pip compile -q pyproject.toml --extra embedded --extra s3 --extra monitoring --extra simulator --extra gateway --extra sentry --extra otel --group bench --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -c requirements/dev.txt -o requirements/bench.txt
	echo hatchling | uv pip compile -q - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -c requirements/dev.txt -o requirements/build.txt

clean: ## remove .venv, .venv-bench and caches (data of the embedded servers stays)
	rm -rf $(VENV) $(BENCH_VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
