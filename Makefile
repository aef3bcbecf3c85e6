# make demo   install, run the demo protocol on a phantom, print its table (three minutes on two cores)
# make test   install, run the tests, but for those that take more than about ten seconds each
# make test-slow   those: whole benchmarks, kills, clusters, the tutorial, the site
# make lint   formatting, linting and types, as CI checks them
# make mutants   break the numeric core in more than a hundred places: do the tests notice?
# make study PART=A   a part of the study, on the data below TRM_DATA (docs/study.md): hours
# make docs   the documentation site, in site/; a link that leads nowhere is an error
# make faults   thousands of bad inputs, a hundred kills, full disks; writes docs/faults.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint mutants faults study docs clean

demo: .venv/installed
	@echo "Twenty infant brains of a phantom, their tissues on T1, from two training subjects, three seeds."
	@echo "Expect: fine-tuning a network that knows T2 is worse than training from scratch (negative"
	@echo "transfer), one that knows white matter on T1 helps, and trm does what trm_prior does."
	$(BIN)/trm-bench run protocols/demo.yaml --phantom

test: .venv/installed
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -n auto -m slow

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

mutants: .venv/installed
	$(BIN)/python tests/mutation/run.py

faults: .venv/installed
	PYTHONPATH=tests $(BIN)/python -m faults --report docs/faults.md

study: .venv/installed
	$(BIN)/python study/run.py $(PART)

docs: .venv/installed
	$(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info
