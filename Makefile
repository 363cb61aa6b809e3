# Everything runs in .venv, which the first target that needs it makes. On Windows see the README's plain lines.
PYTHON ?= python3
BIN := .venv/bin
# two files of tests at a time, since much of their time is waiting; in their order, so that the longest, the demo, begins early
TOGETHER := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo web test test-long test-fast torture check audit docs bench

demo: .venv/run
	$(BIN)/limner demo

web: .venv/run
	$(BIN)/limner web

test: .venv/test
	scripts/install_chromium.sh
	$(BIN)/python -m pytest $(TOGETHER) -m "not long"

test-long: .venv/test
	scripts/install_chromium.sh
	$(BIN)/python -m pytest $(TOGETHER) -m long

test-fast: .venv/test
	scripts/install_chromium.sh
	$(BIN)/python -m pytest $(TOGETHER) -m "not slow and not long"

# what docs/reliability.md promises, tried hard; hours. `make torture ONLY=tests/torture/test_kills.py` is one part
ONLY ?= tests/torture

torture: .venv/test
	scripts/install_chromium.sh
	$(BIN)/python -m pytest --timeout 0 $(ONLY)

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	# the rest is not typed, but the modules of Limner that it takes, and what it takes of any, have to be there
	! $(BIN)/pyright --pythonpath $(BIN)/python benchmarks scripts tests | grep -E '"limner[^"]*"( could not| is unknown)|of module "limner|unknown import symbol'
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs.py

# asks PyPI's advisory database, so it needs the network, and --strict or it calls what it could not look up sound;
# tests/test_floors.py holds what it has led to so far
audit: .venv-audit/bin/pip-audit
	sed 's/+cpu$$//' constraints.txt > .venv-audit/constraints.txt
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv-audit/constraints.txt

.venv-audit/bin/pip-audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit

docs: .venv/run
	$(BIN)/limner config docs docs/reference

# about ten minutes; benchmarks/README.md says how to have sd-scripts and diffusers' script measured beside it
BENCH ?= --rounds 2 --steps 8 --curve-steps 0

bench: .venv/run
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/rivals.py $(BENCH)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ .venv/run
