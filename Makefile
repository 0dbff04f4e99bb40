# Sets up an environment in .venv and runs. Inside an environment of your own, use
# `snakemake --cores 8 all` and `pytest`.
PYTHON ?= python3
CORES ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count()))')
VENV := .venv
READY := $(VENV)/.ready

.PHONY: reproduce test stress lint benchmarks clean

reproduce: $(READY)  ## Regenerate every figure, table and verdict at the default scale
	$(VENV)/bin/snakemake --cores $(CORES) all

test: $(READY)  ## Run the tests
	$(VENV)/bin/pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

stress: $(READY)  ## Kill processes and damage files; STRESS='--trainers 40' for more
	$(VENV)/bin/python -m tests.stress $(STRESS)

lint: $(READY)  ## Check style, types and the workflow
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/snakefmt --check Snakefile workflow
	$(VENV)/bin/snakemake --lint

benchmarks: $(READY)  ## Time every engine against the plain implementation of the same step
	for benchmark in benchmarks/[a-z]*.py; do $(VENV)/bin/python $$benchmark || exit 1; done

clean:  ## Remove the environment; results and figures stay
	rm -rf $(VENV)

$(READY): envs/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement envs/requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --editable .
	touch $@
