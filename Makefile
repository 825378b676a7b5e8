# Everything from a bare Python 3.11: `make demo` shows it at work, `make test` checks it, `make test-all` with what is slow.
# Steps that are done leave a stamp in .venv and are not done again.

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
NEEDS_PYTHON := Python 3.11 or newer with its venv module is needed: install python3.11 and python3.11-venv

.DEFAULT_GOAL := help
.PHONY: help demo app docs test test-all compat lint types unit fuzz offline kills results licences audit clean

# Two tests and more at a time, each on one thread: torch's threads would only get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/'

demo: $(VENV)/.installed $(VENV)/.weights ## segment two real pictures by a phrase and show the result
	$(BIN)/medsam3 demo --open

app: $(VENV)/.installed $(VENV)/.weights ## open the page in the browser, with a sample segmented
	$(BIN)/medsam3 serve --open

test: lint types unit ## install from nothing, then run all checks and all tests but the slow ones

test-all: lint types $(VENV)/.installed-dev $(VENV)/.weights-dev compat ## the same, with the slow tests, and ten minutes of damaged files
	$(PYTEST) -m "not gpu"
	$(MAKE) fuzz

OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
compat: $(VENV)/.installed-dev ## SAM 3's tests with the oldest and the newest transformers that are allowed
	for wanted in "transformers~=$(OLDEST).0" "transformers>=$(OLDEST),<6"; do \
		rm -rf $(VENV)/transformers && \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(VENV)/transformers "$$wanted" && \
		PYTHONPATH=$(VENV)/transformers $(PYTEST) -m "not gpu" tests/models/sam3 || exit 1; \
	done

lint: $(VENV)/.installed-dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy
	$(BIN)/mypy

unit: $(VENV)/.installed-dev $(VENV)/.weights-dev ## pytest, with the tests that need the encoders' weights
	$(PYTEST) -m "not slow and not gpu"

fuzz: $(VENV)/.installed-dev ## read damaged files for SECONDS (600), and keep those that are not answered in one line
	$(BIN)/python benchmarks/fuzz.py --seconds $(or $(SECONDS),600)

docs: $(VENV)/.installed-docs ## build the documentation's site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

offline: $(VENV)/.installed-dev $(VENV)/.weights-dev ## all tests but those for a GPU, with loopback and no other network
	unshare --net $(if $(filter 0,$(shell id -u)),,--map-root-user) $(BIN)/python tests/loopback_only.py \
		env $(PYTEST) -m "not gpu" $(TESTS)

kills: $(VENV)/.installed-dev ## kill -9 every kind of work KILLS times (50), and compare what comes out with unbroken runs
	$(BIN)/python benchmarks/kills.py --kills $(or $(KILLS),50)

results: $(VENV)/.installed-dev $(VENV)/.weights-dev ## measure every figure of the documentation again on DATA (hours; goes on)
	$(BIN)/python benchmarks/all_results.py $(or $(DATA),$(error name the data: make results DATA=folder)) $(RESULTS)

licences: $(VENV)/.installed-dev ## list the licences of all dependencies
	$(BIN)/pip-licenses --from=mixed --order=license

audit: $(VENV)/.installed-dev ## ask for known weaknesses of all dependencies, over the network
	$(BIN)/pip-audit --skip-editable --progress-spinner off

clean: ## remove what this file has made
	rm -rf $(VENV) demo_out dist site .pytest_cache .mypy_cache .ruff_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@for python in python3.11 python3 python3.12 python3.13; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "making $(VENV) with $$python"; \
			$$python -m venv --clear $(VENV) && touch $@ && exit 0; \
			exit 1; \
		fi; \
	done; echo "$(NEEDS_PYTHON)" >&2; exit 1

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[demo,server]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.weights: src/medsam3/models/mini/encoder_files.py | $(VENV)/.installed
	$(BIN)/medsam3 weights fetch
	@touch $@

$(VENV)/.weights-dev: src/medsam3/models/mini/encoder_files.py | $(VENV)/.installed
	$(BIN)/medsam3 weights fetch --training
	@touch $@
