# The two commands are "make demo" and "make test"; both need Python 3.11 or later and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINNED := --constraint constraints.txt --build-constraint constraints.txt

# mysqlclient compiles against MariaDB's or MySQL's headers; without them the tests on MariaDB skip.
MYSQLCLIENT := $(shell pkg-config --exists libmariadb 2>/dev/null \
	|| pkg-config --exists mysqlclient 2>/dev/null && echo mysqlclient)

LOWEST := .lowest
LOWEST_TESTS := claims client transport keys fields secret_sources sign_in

# Interpreters that pyenv has, beside those on the PATH.
PYENV := $(shell pyenv root 2>/dev/null)
PYTHONS := $(wildcard $(PYENV)/versions/3.1[1-3].*/bin/python3.1[1-3])

.PHONY: help demo test lint docs lowest mutants screenshots matrix clean

help:
	@echo "make demo               a staff portal and a simulated Bipsync, in your browser"
	@echo "make demo ARGS=--check  the same journey without a person"
	@echo "make test               everything that CI runs"
	@echo "make mutants            take out each defence of docs/security.md, and see its test fail"
	@echo "make docs               the documentation as HTML, in docs/_build/html"
	@echo "make screenshots        the pictures in the documentation, from the browser tests"
	@echo "make lowest             the tests that count most, on the lowest versions that are allowed"
	@echo "make matrix             the tests on every Python and Django that is there"
	@echo "make clean              remove what the others made"

demo: $(VENV)/demo
	@$(BIN)/python -m sample_project.demo $(ARGS)

test: lint docs lowest
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev
	$(BIN)/python -m sphinx -b html -W --keep-going -n -q docs docs/_build/html

# A floor of pyproject.toml is a promise. What talks to Bipsync, reads tokens and signs in keeps it.
lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -q -p no:cacheprovider --session-timeout 600 $(addprefix tests/test_,$(addsuffix .py,$(LOWEST_TESTS)))

$(LOWEST)/installed: $(VENV)/dev tests/lowest.py
	@echo "Installing the lowest versions …"
	@rm -rf $(LOWEST) && $(PYTHON) -m venv --without-pip $(LOWEST)
	@$(BIN)/python -m tests.lowest > $(LOWEST)/constraints.txt
	@$(PIP) --python $(LOWEST)/bin/python install --constraint $(LOWEST)/constraints.txt \
		--build-constraint constraints.txt --group lowest $(MYSQLCLIENT) --editable .[aws,azure,redis,testing]
	@touch $@

# More than an hour; make mutants ARGS=cookie takes those that have something to do with a cookie.
mutants: $(VENV)/dev
	$(BIN)/python -m tests.mutants $(ARGS)

# Those that are there are taken anew. The browser tests show each page in a state that they assert.
screenshots: $(VENV)/dev
	@rm -rf docs/_build/screenshots && mkdir -p docs/_build/screenshots
	BIPSYNC_SCREENSHOTS=docs/_build/screenshots $(BIN)/python -m pytest -q tests/test_panel_browser.py tests/test_portal_browser.py
	@cp $(addprefix docs/_build/,$(subst docs/,,$(wildcard docs/screenshots/*.png))) docs/screenshots/

# Not with the pinned versions: a Django of its own for each, and the newest of everything else.
matrix: $(VENV)/dev
	@MATRIX_MYSQLCLIENT=$(MYSQLCLIENT) $(BIN)/tox run $(if $(PYTHONS),--discover $(PYTHONS)) -- $(ARGS)

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

$(VENV)/dev: $(VENV)/demo
	@echo "Installing what the tests need …"
	@$(PIP) install $(PINNED) --group dev $(MYSQLCLIENT)
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .demo .tox docs/_build build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
