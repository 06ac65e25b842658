# Two commands matter: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
SECONDS_PER_RUN ?= 6
FUZZ_SECONDS ?= 60

.PHONY: demo test test-slow check audit fuzz bench docs torch test-torch clean

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv .venv || python3 -m venv .venv

$(STAMP): pyproject.toml requirements/base.txt requirements/dev.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/base.txt -r requirements/dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(STAMP)  ## load the zoo, profile it, serve mixed load, compare policies (under 3 minutes)
	$(BIN)/cotenant demo

test: $(STAMP)  ## everything that needs neither torch nor a GPU
	$(BIN)/python -m pytest -m "not gpu and not torch and not slow"

test-slow: $(STAMP)  ## what takes minutes and needs neither torch nor a GPU
	$(BIN)/python -m pytest -m "slow and not gpu and not torch" || test $$? -eq 5

torch: $(STAMP)  ## add torch to .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/torch.txt
	@touch .venv/.torch

test-torch: torch  ## the tests that need torch
	$(BIN)/python -m pytest -m "torch and not gpu" || test $$? -eq 5

check: $(STAMP)  ## format, lint, types, imports
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(STAMP)  ## known vulnerabilities in every pinned dependency
	@failed=0; for file in requirements/*.txt; do \
		echo "== $$file: $$(grep -c == $$file) pinned packages"; \
		$(BIN)/pip-audit --disable-pip --no-deps --progress-spinner off --desc on -r $$file || failed=1; \
	done; exit $$failed

fuzz: $(STAMP)  ## every reader of bytes that somebody else wrote, FUZZ_SECONDS in all
	$(BIN)/python experiments/fuzz.py --seconds $(FUZZ_SECONDS)

bench: $(STAMP)  ## ratios against peers, decision time, simulator speed
	$(BIN)/python benchmarks/run.py

docs: $(STAMP)  ## check that what the docs name exists
	$(BIN)/python -m pytest -q tests/unit/test_docs.py

clean:
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis
