# One command for each thing a person does here. `make quickstart` and `make test` set everything up themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install quickstart test lint types real gpu clean

install: $(STAMP)

# gptqmodel builds its extension against the installed torch, so torch comes first and its build is not isolated.
# llama-cpp-python compiles llama.cpp: about ten minutes, once; pip keeps the wheel.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fieldtune needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run: make PYTHON=/path/to/python3.11 ...")'
	@command -v cc >/dev/null && command -v c++ >/dev/null || { echo "fieldtune compiles llama.cpp and needs a C and a C++ compiler (Debian, Ubuntu: apt-get install build-essential)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel torch
	@echo "installing; the first time, llama.cpp is compiled (about ten minutes on two cores)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation gptqmodel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable '.[gptq,qlora,tuned]'
	touch $(STAMP)

quickstart: install
	$(BIN)/fieldtune run recipes/quickstart.yaml

# What CI runs: lint, types, the default tier, then the slow tier (the whole path on the starter). A file's tests stay
# in one process, because they share what they build.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
test: install lint types
	$(BIN)/python -m pytest $(PARALLEL)
	$(BIN)/python -m pytest $(PARALLEL) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# The same path on a real Qwen2.5-0.5B; skips with its reason where there is none (CONTRIBUTING.md).
real: install
	$(BIN)/python -m pytest -m real

gpu: install
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
