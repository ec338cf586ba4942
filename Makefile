# Two commands do all the set-up themselves: `make try` and `make test`. Needs Python 3.11+ with pip, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: try test lint types pytest bench train evaluate wheel clean

try: $(VENV)/run
	$(BIN)/fimserver complete examples/wordcount.py:13:12 --model dllm --show-steps
	$(BIN)/fimserver complete examples/wordcount.py:13:12 --model ar

test: lint types pytest

lint: $(VENV)/check
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .

types: $(VENV)/check
	$(BIN)/mypy

pytest: $(VENV)/check
	$(BIN)/pytest -q -n 2 --dist loadfile

bench: $(VENV)/run
	$(BIN)/python -m tests.bench.engines

train: $(VENV)/run
	$(BIN)/python -m models.training.corpus
	$(BIN)/python -m models.training.train --minutes $(or $(MINUTES),100)

evaluate: $(VENV)/run
	$(BIN)/python -m models.training.evaluate --spans 400 --samples 20

wheel: $(VENV)/run
	$(PIP) build
	$(BIN)/python -m build -q --wheel

clean:
	rm -rf $(VENV) dist build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing fimserver and its dependencies into $(VENV) (once)"
	@$(PIP) -e .
	@touch $@

$(VENV)/check: $(VENV)/run
	@$(PIP) -e '.[test]'
	@touch $@
