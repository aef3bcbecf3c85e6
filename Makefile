# make demo   install, run a protocol on the phantom, print its table (a few minutes on two cores)
# make test   install, run the tests
# make lint   formatting, linting and types, as CI checks them
# make mutants   break the numeric core in more than a hundred places: do the tests notice?
# make docs   the documentation site, in site/; a link that leads nowhere is an error
# make faults   thousands of bad inputs, a hundred kills, full disks; writes docs/faults.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint mutants faults docs clean

demo: .venv/installed
	$(BIN)/trm-bench run protocols/fets_cross_modality.yaml --phantom

test: .venv/installed
	$(BIN)/python -m pytest -n auto

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

mutants: .venv/installed
	$(BIN)/python tests/mutation/run.py

faults: .venv/installed
	PYTHONPATH=tests $(BIN)/python -m faults --report docs/faults.md

docs: .venv/installed
	$(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info
