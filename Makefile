# Two commands need nothing but this clone, Python 3.11 or newer, pip and make:
#
#     make lab     install into .venv (the first time) and open the tour in JupyterLab:
#                  your own copy of it, in my/, which git doesn't see
#     make test    the same install, then every check that this machine can run
#     make again   put your copy of a notebook aside and begin with a fresh one
#                  (make again NOTEBOOK=03)
#     make workbook   the course to write, in my/: what is yours in it is blank
#     make mine    an engine of what you wrote in my/: assembled, judged and run
#
# Variables:
#     PYTHON=python3.12        the Python that .venv is made from
#     PY=python                use this Python as it is, with no .venv (conda)
#     TORCH=cpu                install PyTorch without CUDA (Linux: several GB less)
#     NOTEBOOK=03              what `make lab` opens
#     LAB_ARGS="--no-browser"  more arguments for JupyterLab
#     COPIES=folder            where your copies are (default: my)
#     WITH="09#serve"          exercises that `make mine` plugs in
#     STEPS="unit notebooks"   the steps of `make test` to run (default: all)
#     NOTEBOOKS="path ..."     what `make notebooks` runs (default: all)

.DEFAULT_GOAL := help
.PHONY: help setup lab again workbook mine test notebooks sync lint format clean

NOTEBOOK ?= 00
COPIES ?= my

ifneq ($(origin PY),command line)
PY := .venv/bin/python
# The stamp's name holds the checksum of the pins and of this folder (a virtual
# environment doesn't survive a move), so a change of either installs afresh.
INSTALLED := .venv/installed-$(shell (cat requirements.txt; pwd) | cksum | tr -d ' ')
endif

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
	@echo "Upkeep: make setup | notebooks (sync, run, save) | sync | lint | format | clean"

setup: $(INSTALLED)

lab: $(INSTALLED)
	@$(PY) -m folovllm_lite lab --folder "$(COPIES)" "$(NOTEBOOK)" -- $(LAB_ARGS)

again: $(INSTALLED)
	@$(if $(filter file,$(origin NOTEBOOK)),echo "Which one? make again NOTEBOOK=03" >&2; exit 2,\
		$(PY) -m folovllm_lite lab --again --folder "$(COPIES)" "$(NOTEBOOK)")

workbook: $(INSTALLED)
	@$(PY) -m folovllm_lite workbook --out "$(COPIES)"

mine: $(INSTALLED)
	@$(PY) -m folovllm_lite mine "$(COPIES)" $(patsubst %,--with "%",$(WITH))

test: $(INSTALLED)
	@$(PY) -m tests.run $(STEPS)

notebooks: $(INSTALLED)
	@$(PY) -m tests.notebooks.build $(NOTEBOOKS)
	@$(PY) -m tests.notebooks.interview docs/interview.md

sync: $(INSTALLED)
	@$(PY) -m tests.notebooks.build --sync-only $(NOTEBOOKS)

lint: $(INSTALLED)
	@$(PY) -m tests.run ruff lint

format: $(INSTALLED)
	@$(PY) -m ruff check --fix --exit-zero . && $(PY) -m ruff format .

clean:
	@echo "Deleting .venv (the next command installs it again) and caches; my/ stays"
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

ifdef INSTALLED
ifeq (,$(shell $(PY) -c 'print(1)' 2>/dev/null))
.PHONY: $(INSTALLED)
endif
# Where Python comes without ensurepip (Debian's python3 without python3-venv), the
# pip that came with Python fills the environment from outside.
$(INSTALLED):
	@py=; for p in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14; do \
		if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
		then py=$$p; break; fi; done; \
	if [ -z "$$py" ]; then \
		echo "No Python 3.11 or newer found; try: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; fi; \
	echo "Installing $$(grep -c == requirements.txt) packages into .venv" \
		"with $$($$py --version), once: a few minutes and 2 GB"; \
	pip="$(PY) -m pip"; \
	$$py -m venv --clear .venv >/dev/null 2>&1 || { \
		pip="$$py -m pip --python $(PY)"; \
		$$py -m venv --clear --without-pip .venv || exit 1; }; \
	if [ -t 1 ]; then bar=; else bar=--progress-bar=off; fi; \
	install="$$pip install $$bar --disable-pip-version-check"; \
	if [ -n "$(TORCH)" ]; then \
		$$install uv && install=".venv/bin/uv pip install --python $(PY) \
			--torch-backend=$(TORCH)" || exit 1; fi; \
	$$install -r requirements.txt && touch $@
endif
