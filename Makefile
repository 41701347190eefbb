# SPDX-License-Identifier: Apache-2.0
# Everything sets itself up: a virtual environment in .venv, the native build, the dependencies. `make help` lists the verbs.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find src/netback/dataplane -name '*.pyx' -o -name '*.pxd')
SECONDS ?= 60
ARGS ?=

.PHONY: help demo test lab lab-full lint types fuzz bench sanitize docs clean build

help:
	@echo "make demo      frames over Xen's rings, end to end, on this machine (ARGS='--break csum', ...)"
	@echo "make test      lint, types and the whole test suite"
	@echo "make lab       the same on real Xen, booted inside QEMU: the small set of scenarios (make lab-full: all)"
	@echo "make bench     speed beside named baselines: bench/out/bench.json and bench.png (ARGS='--quick')"
	@echo "make fuzz      random and hostile input for SECONDS=$(SECONDS)"
	@echo "make sanitize  the native tests again under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make lint types docs build clean"

demo: build
	@$(BIN)/netback demo $(ARGS)

test: build lint types
	$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src/netback
	$(BIN)/codespell --ignore-words-list=sring,passt --skip='*.so,*.pcapng,.venv,build,.git' .

types: $(VENV)/.tools
	$(BIN)/mypy

fuzz: build
	$(BIN)/python -m fuzz --seconds $(SECONDS) $(ARGS)

lab: build
	$(BIN)/netback lab test $(ARGS)
	$(if $(ARGS),,sh scripts/lab_commands.sh $(BIN)/netback)

lab-full: build
	$(BIN)/netback lab test --full $(ARGS)
	$(if $(ARGS),,sh scripts/lab_commands.sh $(BIN)/netback)

bench: build
	$(BIN)/python -m bench $(ARGS)

sanitize: build
	$(BIN)/python scripts/sanitize.py $(ARGS)

docs: build
	$(BIN)/python -m netback.xenbus.states > docs/states.md

build: $(VENV)/.built

# The check comes first, so that what is missing is one line and not a page of pip.
$(VENV)/.venv-made:
	@sh scripts/check.sh $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check "setuptools>=77" wheel "Cython>=3.0.10,<4"
	@touch $@

$(VENV)/.tools: $(VENV)/.venv-made pyproject.toml
	@$(BIN)/python scripts/requirements.py test lint bench > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.tools setup.py $(NATIVE)
	@echo "building the native part ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e . || { echo "the native build failed: see above" >&2; exit 1; }
	@touch $@

clean:
	rm -rf build $(VENV) src/*.egg-info bench/out
	find src -name '*.so' -delete
