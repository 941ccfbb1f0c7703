# make demo    set up (once), fit a search engine to documentation on this machine, search it
# make test    the tests; `make test-slow` the long ones; `make lint` style and types
# make docs    the documentation as a site, in build/site
#
# make setup PYTHON=python3.12           another interpreter (3.10 to 3.13)
# make setup TORCH="torch==2.13.0 ..."   another build of torch, with the options of pip that it takes

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DATA ?=

RUN := $(VENV)/bin/python
# Byte code is made when a module is first imported: most of what is installed never is.
PIP := $(RUN) -m pip install --quiet --no-compile
export PIP_PROGRESS_BAR := off
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start hundreds of processes: each would compile torch and all else anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow lint docs bench clean
.DEFAULT_GOAL := setup
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

# torch comes first and alone: asked for among the others, pip may take another build of it, with gigabytes
# of GPU libraries. The lock is a constraint there, so that nothing is installed twice.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "searchfit needs Python 3.10 or newer: make PYTHON=...")'
	@echo "setting up $(VENV), a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH) --constraint requirements.lock
	$(PIP) --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(RUN) examples/demo.py

# Two processes of one thread each take half the time of one with two.
test: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2

test-slow: setup
	$(RUN) -m pytest -m slow

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

# The site in build/site; `python3 -m http.server -d build/site` shows it. Pages told from the code are written anew.
docs: setup
	$(PIP) "mkdocs-material>=9.6,<10"
	$(RUN) docs/reference.py
	$(RUN) -m searchfit settings --markdown > docs/settings.md
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

# DATA: folders in the BEIR layout
bench: setup
	$(RUN) benchmarks/quality.py $(DATA)

# What the demo and the tools left; the environment in $(VENV) stays.
clean:
	rm -rf demo-search build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
