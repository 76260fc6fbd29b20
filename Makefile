# Troupe from a fresh checkout. Needs Python 3.11 or newer with venv, and make; everything else comes with pip.
#
#   make demo               see it work on a clip that it draws itself
#   make test               what .ci/run calls
#   make PYTHON=python3.12 demo
#   make TORCH=cpu demo     no NVIDIA GPU here: take torch's small build without CUDA

PYTHON ?= python3
TORCH ?=
EXTRAS :=
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt $(if $(filter cpu,$(TORCH)),--extra-index-url $(CPU_INDEX))

# An environment that was copied or moved, or whose Python is gone, no longer finds the packages of this folder.
# It is asked from another folder, because from here Python would find them in any case.
ASK := import cli, pathlib; print(pathlib.Path(cli.__file__).parents[1])
STALE := $(shell [ -d $(VENV) ] && [ "$$(cd / && "$(CURDIR)/$(BIN)/python" -c '$(ASK)' 2>/dev/null)" != "$(CURDIR)" ] && echo stale)

.DEFAULT_GOAL := help
.PHONY: help demo install test lint soak bench clean stale

help: ## show this list
	@echo "Troupe: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed ## restage a green-screen clip that is drawn on the spot; prints where the result is
	@$(BIN)/troupe demo

install: $(VENV)/installed ## make .venv with the troupe command in it
	@echo "Installed. Next: . $(BIN)/activate && troupe --help"

# The tests in three processes, because they mostly wait where a Ray is needed: for processes to start, and for what they
# have killed. What `troupe up` starts is in one of them: it has a port of its own. Each says what it has to say when it
# has ended.
test: $(VENV)/installed-dev ## lint, and every test; long ones with reduced counts, which the summary states
	@$(MAKE) --no-print-directory --jobs=3 --keep-going --output-sync=target lint test-service test-jobs test-rest

TESTS_service := $(wildcard tests/serve/test_*.py) tests/serve/standing tests/cli/standing
OTHERS := tests $(TESTS_service:%=--ignore=%)
# Models know nothing of Ray: their tests need not even be collected.
TESTS_jobs := -m ray $(OTHERS) $(addprefix --ignore=tests/actors/,matte networks upscale video)
TESTS_rest := -m 'not ray' $(OTHERS)

# 5 means that PYTEST_ARGS left no test in one of them.
test-%: $(VENV)/installed-dev
	@echo "== $*"; $(BIN)/python -m pytest $(TESTS_$*) $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: $(VENV)/installed-dev ## ruff, mypy (strict), import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/installed-dev ## the long tests with their full counts
	TROUPE_SOAK=full $(BIN)/python -m pytest -m soak -o timeout=7200 $(PYTEST_ARGS)

bench: $(VENV)/installed-dev ## measure restaging on this machine
	$(BIN)/python -m bench.restage

clean: ## remove the environment, caches and the demo's files; never your videos
	rm -rf $(VENV) build demo *.egg-info .ruff_cache .mypy_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# On a fresh checkout the first rule below installs the tests' packages too: pip is asked once.
$(VENV)/installed-dev: EXTRAS := [dev]
$(VENV)/installed-dev: $(VENV)/installed
	@grep -q dev $(VENV)/installed || $(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt $(STALE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Troupe needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "If a newer one is installed, name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) comes without venv. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): some minutes the first time; without an NVIDIA GPU, TORCH=cpu saves most of it"
	$(PYTHON) -m venv $(if $(STALE),--clear) $(VENV)
	$(INSTALL) --editable '.$(EXTRAS)'
	@echo '$(EXTRAS)' > $@
