# The two commands are "make demo" and "make test"; both need Python 3.11 or later and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINNED := --constraint constraints.txt --build-constraint constraints.txt

.PHONY: help demo test lint clean

help:
	@echo "make demo               a staff portal and a simulated Bipsync, in your browser"
	@echo "make demo ARGS=--check  the same journey without a person"
	@echo "make test               everything that CI runs"
	@echo "make clean              remove what the others made"

demo: $(VENV)/demo
	@$(BIN)/python -m sample_project.demo $(ARGS)

test: lint
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/pip: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "bipsync-django needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --upgrade pip
	@touch $@

$(VENV)/demo: $(VENV)/pip pyproject.toml
	@echo "Installing bipsync-django …"
	@PYTHONWARNINGS=ignore $(PIP) install $(PINNED) --editable .
	@touch $@

# mysqlclient compiles against MariaDB's or MySQL's headers; without them the tests on MariaDB skip.
$(VENV)/dev: $(VENV)/demo
	@echo "Installing what the tests need …"
	@$(PIP) install $(PINNED) --group dev
	@if pkg-config --exists libmariadb 2>/dev/null || pkg-config --exists mysqlclient 2>/dev/null; \
		then $(PIP) install $(PINNED) mysqlclient; fi
	@touch $@

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
