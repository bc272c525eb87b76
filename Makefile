# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first, once.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
RUN := .venv/bin/python

.PHONY: demo test test-all native lint format docs clean

demo: ## Read text from the small model that comes along, with its speed
	@PYTHON="$(PYTHON)" sh scripts/environment.sh core
	@$(RUN) -m oneroof generate demo --prompt "Once upon a time" --max-tokens 120 --seed 1 $(ARGS)

test: ## Every test that takes seconds
	@PYTHON="$(PYTHON)" sh scripts/environment.sh test
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) -m "not slow" $(ARGS)

test-all: ## The slow ones too, the native kernels with sanitizers, and the types
	@PYTHON="$(PYTHON)" sh scripts/environment.sh test
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) $(ARGS)
	@OMP_NUM_THREADS=1 sh scripts/sanitize.sh
	@$(RUN) -m mypy

native: ## Compile the native CPU kernels: only what has changed
	@PYTHON="$(PYTHON)" sh scripts/environment.sh native

lint: ## What pre-commit runs, and the types
	@PYTHON="$(PYTHON)" sh scripts/environment.sh test
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: ## Lay the code out
	@PYTHON="$(PYTHON)" sh scripts/environment.sh test
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

docs: ## docs/commands.md from the commands' dataclasses; the table in docs/parallel.md where its sources are
	@PYTHON="$(PYTHON)" sh scripts/environment.sh core
	@$(RUN) -m oneroof.cli.document > docs/commands.md
	@if [ -d ../shared ]; then $(RUN) scripts/parallel_page.py; fi

clean: ## Take the environment and all caches away
	rm -rf .venv build dist src/*.egg-info src/oneroof/ops/cpu/*.so src/oneroof/ops/cpu/native.txt
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
