# make quickstart   install what running needs, then answer the main question on the Python standard library's source
# make demo         install what tumorvqa needs too, then its benchmark on made-up patients: four minutes, one page
# make test         install what testing needs too, then check style, types and behaviour
# Python 3.11 or newer; another one with: make PYTHON=python3.12 quickstart

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart demo test clean

quickstart: .venv/installed-run
	$(BIN)/dnt compare --data stdlib

demo: .venv/installed-tumorvqa
	$(BIN)/tumorvqa demo

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal

.venv/installed-run: pyproject.toml constraints.txt
	@$(PYTHON) tools/preflight.py
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable .
	@touch $@

.venv/installed-tumorvqa: .venv/installed-run
	$(BIN)/pip install --constraint constraints.txt --editable ".[tumorvqa]"
	@touch $@

.venv/installed-test: .venv/installed-run
	$(BIN)/pip install --constraint constraints.txt --editable ".[test]"
	@touch $@

clean:
	rm -rf .venv
