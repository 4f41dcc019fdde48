# Two commands matter: `make demo` and `make test`. Each sets up what it needs in .venv and then does its job.
# PYTHON=/path/to/python chooses the interpreter, PYTEST_ARGS="-k rope -x" narrows the tests.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test docs lint check newest harness transformers4 slow gpu clean

# The first name that is really there, really runs (a version manager's shim may not) and is new enough.
runs = $(shell $(1) -c 'import sys; sys.version_info >= (3, $(2)) and print(sys.executable)' 2>/dev/null)
first = $(firstword $(foreach name,$(1),$(call runs,$(name),$(2))))
ifndef PYTHON
PYTHON := $(call first,python3.11 python3.12 python3,11)
endif
ifndef PYTHON312
PYTHON312 := $(call first,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12),12)
endif

bin := .venv/bin
pytest := -m pytest -n 2 --dist loadfile
comma := ,
constraints := $(wildcard constraints/*.txt)
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call setup,DIRECTORY,PYTHON,EXTRAS,PINS): an environment with this project, editable, and the pinned versions of what
# it needs, by default those of its Python.
define setup
	@test -n "$(2)" || { echo "no Python >= 3.11 found: make $@ PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(1) with $(2); the first time takes some minutes"
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(2) -m venv $(1)
	@pins=$$($(1)/bin/python -c 'import sys; print("py312" if sys.version_info >= (3, 12) else "py311")'); \
	$(1)/bin/python -m pip install --quiet --constraint constraints/$(or $(4),$$pins).txt --editable '.$(3)'
	@touch $@
endef

help: ## print these lines
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1 \t/' | expand -t 18

demo: .venv/.ready ## extend the bundled model's window, measure it, export it, prove the export equal
	@$(bin)/ctxext demo

test: lint ## lint, types, architecture, tests (at most 10 minutes on 2 cores)
	@$(bin)/python $(pytest) $(PYTEST_ARGS)

lint: .venv/.ready-test
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/pyright
	@$(bin)/lint-imports --no-cache --no-logo

docs: .venv/.ready-test ## write the pages of docs/ that are generated from the code
	@$(bin)/python docs/generate.py

check: .venv/.ready-test newest harness transformers4 ## the built wheel alone; newest jax on Python 3.12; other readers
	@$(bin)/python $(pytest) -m check $(PYTEST_ARGS)

# The tests that need no torch, once more with the newest jax (tests/conftest.py says which).
ifeq ($(PYTHON312),)
newest:
	@echo "newest jax: skipped, no python3.12 that runs on the PATH (make check PYTHON312=/path/to/python3.12)"
else
newest: .venv312/.ready
	@.venv312/bin/python $(pytest) $(PYTEST_ARGS)
endif

# The tests that need the extra lm-eval, which is too large for the environment of the others.
harness: .venvharness/.ready
	@.venvharness/bin/python -m pytest tests/harness/test_harness.py $(PYTEST_ARGS)

# transformers 4.57 as a reader and a writer, and the converter of Meta's checkpoints, which later wheels have not.
converter := .venvtransformers4/converter/transformers/models/llama/convert_llama_weights_to_hf.py
transformers4: .venvtransformers4/.ready
	@LLAMA_CONVERTER="$(CURDIR)/.venvtransformers4/bin/python $(CURDIR)/$(converter)" .venvtransformers4/bin/python -m pytest \
	-m "not slow" tests/interop/test_transformers4.py tests/interop/test_meta.py::test_transformers_converter $(PYTEST_ARGS)

slow: .venvslow/.ready ## the long tests, by hand: fuzzing, llama.cpp, Ray, other devices' compilers, the docs' commands
	@.venvslow/bin/python -m pytest -m slow -ra $(PYTEST_ARGS)

# The extra that brings this accelerator's jax: cuda or tpu.
ACCELERATOR ?= cuda

gpu: .venvgpu/.ready ## where there is a GPU (or ACCELERATOR=tpu): numerics, memory against the plan, speed
	@CTXEXT_TEST_PLATFORM=$(ACCELERATOR),cpu .venvgpu/bin/python -m pytest -m gpu -ra -s tests/end_to_end/test_device.py $(PYTEST_ARGS)
	@.venvgpu/bin/ctxext bench --parts step prefill decode attention loss $(if $(filter cuda,$(ACCELERATOR)),--against hf)

clean: ## remove environments and caches, keep runs/
	rm -rf .venv .venv312 .venvharness .venvtransformers4 .venvslow .venvgpu .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

# A stamp is written only after its environment is complete, and is older than a later change of what it should hold.
.venv/.ready: pyproject.toml $(constraints)
	$(call setup,.venv,$(PYTHON),)

.venv/.ready-test: pyproject.toml $(constraints)
	$(call setup,.venv,$(PYTHON),[test$(comma)lint])
	@touch .venv/.ready

.venv312/.ready: pyproject.toml $(constraints)
	$(call setup,.venv312,$(PYTHON312),[test])

.venvharness/.ready: pyproject.toml $(constraints)
	$(call setup,.venvharness,$(PYTHON),[test$(comma)lm-eval])

# In it pip builds llama.cpp, which takes some minutes.
.venvslow/.ready: pyproject.toml $(constraints)
	$(call setup,.venvslow,$(PYTHON),[test$(comma)fuzz$(comma)ray$(comma)plan$(comma)plan-gpu$(comma)llamacpp])

.venvgpu/.ready: pyproject.toml $(constraints)
	$(call setup,.venvgpu,$(PYTHON),[test$(comma)$(ACCELERATOR)])

.venvtransformers4/.ready: pyproject.toml $(constraints)
	$(call setup,.venvtransformers4,$(PYTHON),[transformers4],transformers4)
	@rm -rf .venvtransformers4/converter
	@.venvtransformers4/bin/python -m pip download --quiet --no-deps --dest .venvtransformers4/converter transformers==4.44.2
	@cd .venvtransformers4/converter && ../bin/python -m zipfile -e transformers-4.44.2-py3-none-any.whl .
	@touch $@
