# SPDX-License-Identifier: Apache-2.0
# Each command installs what it needs: Debian's packages (scripts/packages.txt), a virtual environment in .venv, the native build.
# `make help` lists the commands.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find src/netback/dataplane -name '*.pyx' -o -name '*.pxd')
SECONDS ?= 60
ARGS ?=
INSTALL ?= yes
# The lists of packages.txt that the commands given to make need; `build` is in each of them.
LISTS = $(or $(patsubst lab-full,lab,$(filter demo test lab lab-full bench fresh deb ovn wheels,$(MAKECMDGOALS))),build)
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo test ovn lab lab-full lint types fuzz bench fresh sanitize docs site wheels deb man clean build need

help:
	@echo "make demo      frames over Xen's rings, end to end, on this machine (ARGS='--break csum', ...)"
	@echo "make test      lint, types and the whole test suite"
	@echo "make ovn       a network of OVN over two hosts, each with netback and a guest, in namespaces (as root)"
	@echo "make lab       the same on real Xen, booted inside QEMU: the small set of scenarios (make lab-full: all)"
	@echo "make bench     speed beside named baselines: bench/out/bench.json and bench.png (ARGS='--quick')"
	@echo "make fuzz      random and hostile input for SECONDS=$(SECONDS)"
	@echo "make sanitize  the native tests again under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make fresh     make demo and make test in minimal chroots of Debian 12, 13 and testing (ARGS='--suite trixie --only demo')"
	@echo "make site      the documentation as a site: build/site/docs/index.html"
	@echo "make wheels    dist/: source archive and wheel, tried in fresh environments (ARGS='--suite testing': in a chroot)"
	@echo "make deb       dist/: the package for Debian 13, built, installed and removed in minimal chroots (as root)"
	@echo "make lint types docs man build clean"
	@echo "As root on a Debian each command installs the packages that it lacks; with INSTALL=no it only names them."

demo: build
	@$(BIN)/netback demo $(ARGS)

test: build lint types $(VENV)/.plots
	$(BIN)/pytest -n 6 --dist loadgroup $(ARGS)

# In namespaces of its own, the processes' too: whatever a daemon leaves is gone with them.
ovn: build
	@unshare -n -m -i -p -f --mount-proc --kill-child sh scripts/ovn.sh $(CURDIR)/$(BIN)/netback

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src/netback
	$(BIN)/codespell

types: $(VENV)/.tools
	$(BIN)/mypy

fuzz: build $(VENV)/.tools
	$(BIN)/python -m fuzz --seconds $(SECONDS) $(ARGS)

lab: build $(VENV)/.plots
	$(BIN)/netback lab test $(ARGS)
	$(if $(ARGS),,sh scripts/lab_commands.sh $(BIN)/netback)

lab-full: build $(VENV)/.plots
	$(BIN)/netback lab test --full $(ARGS)
	$(if $(ARGS),,sh scripts/lab_commands.sh $(BIN)/netback)

bench: build $(VENV)/.plots
	$(BIN)/python -m bench $(ARGS)

sanitize: build $(VENV)/.tools
	$(BIN)/python scripts/sanitize.py $(ARGS)

fresh: $(VENV)/.venv-made
	$(BIN)/python scripts/fresh.py $(ARGS)

docs: build
	$(BIN)/python -m netback.xenbus.states > docs/states.md
	$(BIN)/python -m netback.dataplane.states > docs/dataplane-states.md
	$(BIN)/python -m tests.frontend.matrix > docs/frontends.md
	$(BIN)/python -m netback.dataplane.counters > docs/statistics.md
	$(BIN)/python -m netback.lab.bench.document
	$(BIN)/python -m netback.control.document > docs/control.md
	$(BIN)/python -m netback.daemon.document > docs/explain.md
	$(BIN)/python -m netback.conform.document > docs/conform.md
	$(BIN)/python -m tests.conform.results
	$(BIN)/python -m netback.cli.document > docs/reference.md
	$(BIN)/python -m tests.advisories > docs/advisories.md

site: $(VENV)/.site
	$(BIN)/sphinx-build -q -W --keep-going -c docs/site -b html . build/site

wheels: $(VENV)/.wheels
	$(BIN)/python scripts/wheels.py $(ARGS)

deb: $(VENV)/.venv-made
	$(BIN)/python scripts/deb.py $(ARGS)

man: build $(VENV)/.tools
	$(BIN)/python scripts/manual.py build/share

build: $(VENV)/.built

need:
	@PYTHON=$(PYTHON) INSTALL=$(INSTALL) sh scripts/need.sh $(LISTS)

# The packages come first, so that what is missing is one line and not a page of pip.
$(VENV)/.venv-made: pyproject.toml | need
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/requirements.py > $(VENV)/requirements.txt
	@$(PIP) -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.tools: $(VENV)/.venv-made
	@$(BIN)/python scripts/requirements.py test lint > $(VENV)/requirements-tools.txt
	@$(PIP) -r $(VENV)/requirements-tools.txt
	@touch $@

$(VENV)/.plots: $(VENV)/.venv-made
	@$(BIN)/python scripts/requirements.py bench > $(VENV)/requirements-plots.txt
	@$(PIP) -r $(VENV)/requirements-plots.txt
	@touch $@

$(VENV)/.site: $(VENV)/.venv-made
	@$(BIN)/python scripts/requirements.py site > $(VENV)/requirements-site.txt
	@$(PIP) -r $(VENV)/requirements-site.txt
	@touch $@

$(VENV)/.wheels: $(VENV)/.venv-made
	@$(BIN)/python scripts/requirements.py wheels > $(VENV)/requirements-wheels.txt
	@$(PIP) -r $(VENV)/requirements-wheels.txt
	@touch $@

$(VENV)/.built: $(VENV)/.venv-made setup.py $(NATIVE)
	@echo "building the native part ..."
	@$(PIP) --no-build-isolation --no-deps -e . || { echo "the native build failed: see above" >&2; exit 1; }
	@touch $@

clean:
	rm -rf build $(VENV) src/*.egg-info bench/out
	find src -name '*.so' -delete
