# Every command makes what it needs: a virtual environment in .venv, filled once for each change
# of pyproject.toml. `make demo` and `make test` are all a newcomer needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOOR := .cache/floor
# Test files are shared out to this many processes; ARGS='-k name' or a path runs a part.
JOBS ?= 2

.PHONY: demo test lint types coverage conformance docs bench fuzz soak floor clean help

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 14

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "python3-venv is needed: apt-get install python3-venv" >&2; exit 2; }
	@echo "Installing what is needed into $(VENV); once, about half a minute."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## one service calls another: real mTLS, a live change and a rotation, with no Consul
	@$(BIN)/python examples/fastapi_app/demo.py

test: $(STAMP)  ## every test suite, with branch coverage (budgets: CONTRIBUTING.md)
	$(BIN)/pytest -n $(JOBS) --dist loadfile --cov --cov-report= $(ARGS)
	$(if $(ARGS),,$(BIN)/coverage report --skip-covered --fail-under 100 \
		--include 'mesh_middleware/policy/*,mesh_middleware/tls/*')

lint: $(STAMP)  ## ruff: style, imports, format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy (strict) and pyright
	$(BIN)/mypy
	$(BIN)/pyright

coverage: $(STAMP)  ## branch coverage of the whole package, as a table
	$(BIN)/pytest -n $(JOBS) --dist loadfile --cov --cov-report=term-missing $(ARGS)

conformance: $(STAMP)  ## the recorded and derived decisions alone
	$(BIN)/pytest tests/conformance -q

docs: $(STAMP)  ## run every example of README and docs
	$(BIN)/pytest tests/test_docs.py -q

bench: $(STAMP)  ## measure: decisions, middleware, server (about 10 minutes)
	$(BIN)/python -m tests.benchmarks

FUZZED := tests/fuzz tests/policy tests/envoy tests/test_config.py tests/tls/test_certificates.py \
	tests/tls/test_tokens_keys.py tests/consul/test_decode_provider.py tests/middleware/test_forwarded.py

fuzz: $(STAMP)  ## property tests and fuzzing at length, beside a real Envoy (about 15 minutes)
	MESH_FUZZ_EXAMPLES=20000 $(BIN)/pytest $(or $(ARGS),$(FUZZED)) -n $(JOBS) --dist worksteal -q \
		-p no:cacheprovider --timeout 1800

soak: $(STAMP)  ## 1,000 rotations under load, 50,000 connections, each fault for a minute
	MESH_SOAK=1 $(BIN)/pytest tests/soak -q -s -p no:cacheprovider --timeout 7200
	$(BIN)/python -m tests.faults 60

# What is deprecated in newer versions of others is what the oldest ones use; and they cannot do
# what is deselected.
floor: $(STAMP)  ## the oldest versions that pyproject.toml allows: install them and try (about 4 minutes)
	@mkdir -p $(FLOOR)
	@$(BIN)/python -m tests.floor > $(FLOOR)/constraints.txt
	@test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	@$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' \
		--constraint $(FLOOR)/constraints.txt
	$(FLOOR)/bin/pytest -n $(JOBS) --dist loadfile -p no:cacheprovider \
		-W ignore::DeprecationWarning -k 'not zttp and not http2' \
		$(or $(ARGS),tests/middleware tests/observe tests/server tests/tls tests/upstream \
		tests/servers/test_gunicorn.py tests/servers/test_hypercorn.py \
		tests/test_fastapi.py tests/test_flask.py tests/e2e/test_commands.py)

clean:  ## remove what these commands made
	rm -rf $(VENV) .cache .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache
