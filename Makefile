# Every target sets up .venv by itself; all it needs is Python >= 3.10 with venv, make and a package registry.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# What `make test` installs: EXTRAS=test,torch-test adds torch and jax, without which the tests that need them are skipped,
# ray that of the tests on a Ray cluster.
EXTRAS ?= test
# Processes that run tests beside each other, each whole files. Most tests wait for threads and processes half of their time.
JOBS ?= 2
# Simulated jobs of `make soak`.
SOAK ?= 100000
# More arguments for pytest, for instance PYTEST_ARGS='-k barrier'.
PYTEST_ARGS ?=

comma := ,
# The stamp of a set of extras: made again when the lists of dependencies change.
stamp = $(VENV)/.installed-$(subst $(comma),+,$(1))

.PHONY: help demo test soak lint clean

help:
	@echo 'make demo   train on real images with one process, then with 4 workers and 2 servers'
	@echo 'make test   run the tests'
	@echo 'make soak   100,000 simulated jobs under faults (SOAK=N for another number), then every case of faults, hours'
	@echo 'make lint   ruff, mypy, the layers of imports, sleeps in tests'
	@echo 'make clean  remove .venv and everything that was built'

demo: $(call stamp,examples)
	$(BIN)/python examples/demo.py

test: $(call stamp,$(EXTRAS))
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

soak: $(call stamp,$(EXTRAS))
	$(BIN)/python -m tests.simulation --count $(SOAK) --jobs $(JOBS)
	$(BIN)/python -m tests.cases --trials soak --table --update docs/reliability.md
	LIFE_CYCLES=200 END_CYCLES=40 FUZZ_MESSAGES=100000 $(BIN)/python -m pytest -s \
		tests/system/test_life_cycle.py tests/system/test_ends.py tests/fuzz

lint: $(call stamp,lint)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.lint_sleep

$(VENV)/.created:
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-%: $(VENV)/.created setup.cfg pyproject.toml
	@echo 'Installing pslite[$(subst +,$(comma),$*)] into $(VENV)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(subst +,$(comma),$*)]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
