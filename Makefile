# make demo: the main job on real data.  make test: every test.  Both set up all they need in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: all demo test golden lint bench man clean
all: lint test

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[mpich]' -r tests/requirements.txt
	touch $@
.venv: $(VENV)/.ready

demo: .venv
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: .venv
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# rewrites the golden files of outputs and of refusals; read what changed before you commit it
golden: .venv
	KVTOOLS_GOLDEN=1 $(BIN)/python -m pytest --numprocesses 0 tests/cli/test_same_outputs.py tests/refusals

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# regenerates OPTIONS from --describe, and fails where a page was out of date or mandoc finds fault
man: .venv
	$(BIN)/python man/generate.py --check

bench: .venv
	PATH="$(CURDIR)/$(BIN):$$PATH" bash bench/run.sh

clean:
	rm -rf $(VENV) build .demo bench/.venv bench/.venv-federated bench/.clips bench/.onerec bench/.keye bench/.etree
	find . -name __pycache__ -prune -exec rm -rf {} +
