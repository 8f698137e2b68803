# Needs Python 3.11 to 3.13 and make, nothing else. PYTHON=/path/to/python3.12 chooses one.

BIN := .venv/bin
READY := .venv/ready

# Without compiled bytecode every process would compile every import anew, which triples the start of Airflow.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help up demo test lint bench docs secrets
.NOTPARALLEL:

help:
	@echo 'make up      the stack, for your own models in include/models; Ctrl-C stops it'
	@echo 'make demo    the life of a model on real flights; ONCE=1 stops at the end'
	@echo 'make test    all tests; ARGS="tests/unit -k drift" some of them'
	@echo 'make lint    ruff, mypy, import rules'
	@echo 'make secrets .env for docker compose, with a generated value for each secret'
	@echo 'make docs    docs/dags.md, made from the DAGs'
	@echo 'make bench   the benchmarks and their table; ARGS="score drift" some of them'

up: $(READY)
	@$(BIN)/perennial up

demo: $(READY)
	@$(BIN)/perennial demo $(if $(filter-out 0 no false,$(ONCE)),--once)

# A file to a process; tests wait for other processes much of their time. What needs a whole stack has the machine to itself.
PROCESSES = $(shell expr $$(nproc) + 1)
test: $(READY)
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	$(BIN)/pytest -n $(PROCESSES) --dist loadfile tests/unit tests/project tests/dags tests/faults
	$(BIN)/pytest tests/e2e tests/browser
endif

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

secrets: $(READY)
	@$(BIN)/perennial deploy secrets

docs: $(READY)
	@$(BIN)/python scripts/dags_page.py

bench: $(READY)
	@$(BIN)/python -m benchmarks $(ARGS)

$(READY): requirements.lock requirements-bootstrap.lock pyproject.toml scripts/install.sh
	@PYTHON='$(PYTHON)' sh scripts/install.sh
	@touch $@
