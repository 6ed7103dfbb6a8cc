# make demo    from images to a promoted adapter
# make check   lint, types, import contracts and all tests but those marked `slow`: after each change
# make test    the same with all tests: before a merge. With TESSERA_REAL_DATA=FOLDER also those on real data
.PHONY: demo check test lint install clean
VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

demo: $(VENV)/installed
	tessera demo

# Three processes, for the longest tests mostly wait for servers; one test file at a time each, in the order of
# tests/conftest.py: the longest first.
PYTEST := pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) -m "not slow and not real_data"

test: lint
	$(PYTEST)

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tessera needs Python 3.11 or newer; found $$($(PYTHON) -V). Name one with: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .tessera
