# make demo: from images to a promoted adapter.   make test: lint, types, import contracts, tests.
.PHONY: demo test lint install clean
VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

demo: $(VENV)/installed
	tessera demo

# Two processes, a test file each: most tests wait for one process after another.
test: lint
	pytest --numprocesses=2 --dist=loadfile

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
