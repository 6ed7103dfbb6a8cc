# make demo: from images to a promoted adapter.   make test: lint, types, import contracts, tests.
.PHONY: demo test test-busy test-rest lint install clean
VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

demo: $(VENV)/installed
	tessera demo

# Two runs side by side, because most tests wait for one process after another. These take about half of the time.
BUSY := $(patsubst %,tests/test_%.py,road services cli serving resume search team tracking real_data live)

test: lint
	$(MAKE) --jobs=2 test-busy test-rest

test-busy: $(VENV)/installed
	pytest $(BUSY)

test-rest: $(VENV)/installed
	pytest $(patsubst %,--ignore=%,$(BUSY))

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
