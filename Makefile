# Two commands do most of it: `make book` and `make test`. Each sets itself up in .venv; nothing outside this folder changes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
CHAPTER ?=
COURSE ?= course
JOBS ?=
AGAIN ?=
UNPROTECTED ?=
SECONDS_EACH ?=
ID ?=
NETWORK ?=
MODULES ?=
EVERY ?=
NOTEBOOK ?=
EXERCISES ?=
PORT ?= 8000
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Jupyter, matplotlib, the browser and torch's compiler keep their files with the environment, not in the home folder.
export IPYTHONDIR := $(CURDIR)/$(VENV)/home/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/$(VENV)/home/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/$(VENV)/home/jupyter-data
export JUPYTER_RUNTIME_DIR := $(CURDIR)/$(VENV)/home/jupyter-runtime
export JUPYTER_PLATFORM_DIRS := 1
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/home/matplotlib
export PLAYWRIGHT_BROWSERS_PATH := $(CURDIR)/$(VENV)/home/browsers
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/$(VENV)/home/inductor
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The environment. The stamp is a copy of what was installed, written last: an interrupted install leaves none, and the
# next run then starts from an empty environment.
$(READY): requirements.txt pyproject.toml
	@if cat requirements.txt pyproject.toml | cmp -s - $@; then touch $@; exit 0; fi; set -e; \
	if [ -L $(VENV) ]; then \
	  echo "$(VENV) is a link to another folder's environment, made for other requirements; it is left as it is." >&2; \
	  exit 1; fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "The book needs Python 3.10 or newer; \"$(PYTHON)\" is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
	clear=; [ -f $@ ] || clear=--clear; rm -f $@; \
	$(PYTHON) -m venv $$clear $(VENV) || { \
	  echo "Python could not make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	echo "Installing the pinned requirements into $(VENV) (once; a few minutes)"; \
	$(BIN)/python -m pip install --quiet --progress-bar on -r requirements.txt; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	cat requirements.txt pyproject.toml > $@.tmp; mv $@.tmp $@

.PHONY: book
book: $(READY)  ## build the site, warnings as errors, and say where it is
	@$(BIN)/python -m book.tools.build

.PHONY: serve
serve: book  ## build the site and serve it on this machine (PORT=8000)
	@echo "http://127.0.0.1:$(PORT)/  (Ctrl-C stops it)"; \
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

.PHONY: lab
lab: $(READY)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab --notebook-dir chapters

.PHONY: execute
execute: $(READY)  ## re-run the chapters that changed, or CHAPTER=se; normalise their metadata
	$(BIN)/python -m book.tools.execute $(CHAPTER)

.PHONY: assignment
assignment: $(READY)  ## make the students' version of every chapter, or CHAPTER=se
	$(BIN)/python -m book.tools.assignment --course "$(COURSE)" $(CHAPTER)

.PHONY: grade
grade: $(READY)  ## grade what a class handed in: CHAPTER=se (JOBS=4, COURSE=course, SECONDS_EACH=60, AGAIN=1)
	@$(BIN)/python -m book.tools.grading $(CHAPTER) --course "$(COURSE)" $(if $(JOBS),--jobs $(JOBS)) $(if $(AGAIN),--again) \
	    $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH)) $(if $(UNPROTECTED),--unprotected)

.PHONY: examination
examination: $(READY)  ## put exercises into a notebook of your own: NOTEBOOK=course/midterm.ipynb EXERCISES="se/1 eca/3"
	$(BIN)/python -m book.tools.examination $(NOTEBOOK) $(EXERCISES)

.PHONY: slides
slides: $(READY)  ## make slides of every chapter, or CHAPTER=se, in _build/slides
	$(BIN)/python -m book.tools.slides $(CHAPTER)

.PHONY: bench
bench: $(READY)  ## measure every module on this machine, or ID=se; on one thread of a CPU, as chapters run
	OMP_NUM_THREADS=1 $(BIN)/python -m attn_lib.measure $(if $(ID),--ids $(ID))

.PHONY: ultralytics
ultralytics: $(READY)  ## install the versions of ultralytics that its tests use, each into a folder of its own
	@for list in tests/unit/library/plug/ultralytics_versions/*.txt; do folder=.ultralytics/$$(basename $$list .txt); \
	  cmp -s $$list $$folder/installed.txt && continue; rm -rf $$folder; \
	  $(BIN)/python -m pip install --quiet --no-deps --target $$folder -r $$list && rm -rf $$folder/tests \
	    && cp $$list $$folder/installed.txt || exit 1; done

.PHONY: address
address: $(READY)  ## write the public address of _config.yml into everything derived from it
	$(BIN)/python -m book.tools.address --write

# Every part runs even when an earlier one fails, so that one run tells all there is to tell, and what it cost.
TESTS := lint unit notebooks chapters site
.PHONY: test
test: $(READY)  ## everything: library, notebooks, classroom, built site in a real browser; EVERY=1 spares nothing
	@rm -rf _build/costs; failed=; clock=; for part in $(TESTS); do \
	  echo; echo "== $$part =="; begun=$$SECONDS; \
	  $(MAKE) --no-print-directory test-$$part || failed="$$failed $$part"; \
	  clock="$$clock $$part=$$((SECONDS - begun))"; \
	done; echo; $(BIN)/python -m book.tools.costs $$clock; echo; \
	if [ -n "$$failed" ]; then echo "Failed:$$failed" >&2; exit 1; fi; echo "All passed: $(TESTS)"

# One thread a worker: the parallelism is over tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p book.tools.costs
NBVAL := $(PYTEST) -p book.tools.nbval_chapters --nbval --nbval-current-env --nbval-cell-timeout 120
EVERY_CHAPTER := $(if $(EVERY),--every-chapter)
EVERY_MODULE := $(if $(EVERY),--every-module)

.PHONY: test-lint test-unit test-notebooks test-chapters test-site
test-lint: $(READY)
	$(BIN)/ruff check .
test-unit: $(READY)
	$(PYTEST) --costs _build/costs/unit.json -n $(WORKERS) --dist worksteal $(EVERY_MODULE) tests/unit tests/networks
test-notebooks: $(READY)
	$(NBVAL) --costs _build/costs/notebooks.json -n $(WORKERS) --dist loadfile chapters
test-chapters: $(READY)
	$(PYTEST) --costs _build/costs/chapters.json -n $(WORKERS) --dist worksteal $(EVERY_CHAPTER) tests/chapters
test-site: book
	$(PYTEST) --costs _build/costs/site.json -n $(WORKERS) --dist worksteal $(EVERY_CHAPTER) tests/site

.PHONY: test-networks
test-networks: $(READY)  ## modules in other people's networks, all or NETWORK="timm resnet18" MODULES="se eca"; goes on
	ultralytics=$$(ls -d "$$PWD"/.ultralytics/* 2> /dev/null | sort -V | tail -n 1); \
	PYTHONPATH=$${PYTHONPATH:-$$ultralytics} OMP_NUM_THREADS=1 $(BIN)/python -m tests.networks \
	    $(if $(NETWORK),--networks "$(NETWORK)") $(if $(MODULES),--modules $(MODULES)) \
	    $(if $(filter-out auto,$(WORKERS)),--workers $(WORKERS))

.PHONY: squeezes
squeezes: $(READY)  ## train the channel family on its tasks, for the page on what each squeeze can see; goes on
	OMP_NUM_THREADS=1 $(BIN)/python -m book.tools.squeezes

.PHONY: check
check: $(READY)  ## what concerns one module and its chapter: ID=se
	@test -f tests/unit/modules/test_$(ID).py || test -n "$(wildcard chapters/*/$(ID).ipynb)" || { \
	  echo "Name a module that has its tests, or a chapter, such as: make check ID=se" >&2; exit 1; }
	$(BIN)/ruff check .
	@test -f tests/unit/modules/test_$(ID).py || { echo "There are no tests of a module $(ID)."; exit 0; }; set -ex; \
	$(PYTEST) -q -n $(WORKERS) tests/unit/modules/test_catalog.py; \
	$(PYTEST) -q -n $(WORKERS) --id $(ID) tests/unit
	@test -n "$(wildcard chapters/*/$(ID).ipynb)" || { echo "There is no chapter $(ID)."; exit 0; }; set -ex; \
	$(BIN)/python -m book.tools.anatomy $(ID); \
	$(PYTEST) -q -n $(WORKERS) --id $(ID) tests/chapters; \
	$(NBVAL) -q chapters/*/$(ID).ipynb

.PHONY: lock
lock: $(READY)  ## pin the requirements again (UPGRADE=--upgrade for newer versions)
	$(BIN)/python -m pip install --quiet uv
	@cp requirements.txt requirements.tmp; \
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-annotate --no-header \
	    --quiet $(UPGRADE) -o requirements.tmp \
	  && { sed -n '/^#/p' requirements.txt; sed '/^#/d' requirements.tmp; } > requirements.new.tmp \
	  && mv requirements.new.tmp requirements.txt; rm -f requirements.tmp

.PHONY: clean
clean:  ## remove the built site and caches (the environment too: make clean-all)
	rm -rf _build .pytest_cache .ruff_cache
	find attn_lib book chapters tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-all
clean-all: clean  ## remove the environment as well
	rm -rf $(VENV) attn_lib.egg-info
