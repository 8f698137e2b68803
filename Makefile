# Needs Python 3.11 to 3.13 and make, nothing else. PYTHON=/path/to/python3.12 chooses one.

BIN := .venv/bin
# What runs, what tests and develops beside it, and what makes the lock files are installed when they are needed.
READY := .venv/ready
READY_DEV := .venv/ready-dev
READY_UV := .venv/ready-uv

# Without compiled bytecode every process would compile every import anew, which triples the start of Airflow.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help up demo test test-containers lint lock lock-check audit hooks bench docs secrets egress restart-scorers
.NOTPARALLEL:

help:
	@echo 'make up      the stack, for your own models in include/models; Ctrl-C stops it'
	@echo 'make demo    the life of a model on real flights; ONCE=1 stops at the end, FULL=1 replays 27 weeks, WEEKS=1 one, not 4'
	@echo 'make test    the tests; ALL=1 with those of minutes, as a year of a model; ARGS="tests/unit -k drift" some of them'
	@echo 'make test-containers  docker-compose.yaml in real containers, as root on Debian; ALL=1 with what happens seldom'
	@echo 'make lint    ruff, mypy, import rules, spelling'
	@echo 'make lock    requirements.lock and requirements-dev.lock, from pyproject.toml; UPGRADE=all, or'
	@echo '             UPGRADE="mlflow duckdb" takes newer versions; make lock-check only compares'
	@echo 'make audit   known vulnerabilities of the locked packages, and their list as CycloneDX in sbom.json'
	@echo 'make hooks   the same checks before each commit'
	@echo 'make secrets .env for docker compose, with a generated value for each secret'
	@echo 'make egress TO="db.example.org:5432 hooks.slack.com:443"  what workers in containers may reach, and nothing else'
	@echo 'make restart-scorers  new scorers in containers, one after another, while the others answer'
	@echo 'make docs    docs/dags.md, made from the DAGs, and docs/licences.md, made from the installed packages'
	@echo 'make bench   the benchmarks and their table; ARGS="score drift" some of them'

up: $(READY)
	@$(BIN)/perennial up

demo: $(READY)
	@$(BIN)/perennial demo $(if $(filter-out 0 no false,$(ONCE)),--once) $(if $(filter-out 0 no false,$(FULL)),--weeks 27,$(if $(WEEKS),--weeks $(WEEKS)))

# A file to a process; tests wait for other processes much of their time. What needs a whole stack has the machine to itself.
PROCESSES = $(shell expr $$(nproc) + 2)
SELDOM = $(if $(filter-out 0 no false,$(ALL)),,-m "not rare")
test: $(READY_DEV)
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	$(BIN)/pytest -n $(PROCESSES) --dist loadfile $(SELDOM) tests/unit tests/project tests/dags tests/faults
	$(BIN)/pytest $(SELDOM) tests/e2e tests/browser
endif

test-containers: $(READY_DEV)
	$(BIN)/pytest tests/containers $(SELDOM) $(ARGS)

lint: $(READY_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

lock: $(READY_UV)
	@sh scripts/lock.sh $(UPGRADE)

lock-check: $(READY_UV)
	@sh scripts/lock.sh --check

audit: $(READY_DEV)
	@sh scripts/audit.sh

hooks: $(READY_DEV)
	@$(BIN)/pre-commit install

# Any Python will do, and nothing needs to be installed: the stack runs in containers.
secrets:
	@PYTHONPATH=include $(or $(PYTHON),python3) -m perennial.operations.secret_file .env

egress:
	@PYTHONPATH=include $(or $(PYTHON),python3) -m perennial.operations.egress docker-compose.egress.yaml $(TO) --store $(STORE)

restart-scorers:
	@sh scripts/restart-scorers.sh

docs: $(READY)
	@$(BIN)/python scripts/dags_page.py
	@$(BIN)/python scripts/licences_page.py

bench: $(READY_DEV)
	@$(BIN)/python -m benchmarks $(ARGS)

$(READY): requirements.lock requirements-bootstrap.lock pyproject.toml scripts/install.sh
	@PYTHON='$(PYTHON)' sh scripts/install.sh
	@touch $@

$(READY_DEV): $(READY) requirements-dev.lock
	@PYTHON='$(PYTHON)' sh scripts/install.sh dev
	@touch $@

$(READY_UV): requirements-bootstrap.lock scripts/install.sh
	@PYTHON='$(PYTHON)' sh scripts/install.sh uv
	@touch $@
