# `make help` lists what there is. Everything runs in .venv, which the first run creates.
# `-I` here and below: whatever PYTHONPATH and PYTHONHOME say.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
RUN := "$(PYTHON)" -I tools/bootstrap.py run
NB ?= 00
NEED_PYTHON = $(if $(PYTHON),,echo "No Python 3.11 or later was found. Get one from https://www.python.org/downloads/ and name it: make lab PYTHON=/path/to/python3" >&2; exit 1)
export NB TIER
.DEFAULT_GOAL := help
.PHONY: help setup ready lab check test course notebook notebooks save pretrain replicate-memory replay atlas slides site drift doctor faults rehearse

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create, update or mend .venv (the other commands do it themselves, with a shorter look)
	@$(NEED_PYTHON)
	@"$(PYTHON)" -I tools/bootstrap.py --thorough

ready:
	@$(NEED_PYTHON)
	@"$(PYTHON)" -I tools/bootstrap.py

lab: ready ## open JupyterLab at a notebook: NB=00
	@notebook="$$($(RUN) -m tools.notebooks path "$$NB")" && \
	$(RUN) -m course_utils doctor --fetch && \
	$(RUN) -m tools.lab "$$notebook" $(LAB_OPTIONS)

check: ready ## the quick part of `make test`: ruff, mypy, and the tests that take seconds
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m pytest -n 2 --dist loadfile -m unit

test: ready ## check the code, run the unit tests, every notebook and the site
	@$(RUN) -m tools.site install
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

faults: ready ## break it on purpose: every fault of tests/faults, the slow ones too (about an hour)
	@$(RUN) -m tools.faults -n 2 --dist loadfile
	@$(RUN) -m tools.readme build

rehearse: ready ## run a notebook as on a GPU, on any machine: NB=03.1 TIER=16gb (else all tiers)
	@$(RUN) -m tools.rehearse "$$NB" "$$TIER" $(if $(ACCESS),--access)

course: ready ## run every notebook in order, into build/course/*.html
	@$(RUN) -m tools.notebooks run

notebook: ready ## run one notebook, into build/course/: NB=01
	@$(RUN) -m tools.notebooks run "$$NB"

notebooks: ready ## write notebooks/*.ipynb anew from their sources, keeping saved outputs
	@$(RUN) -m tools.notebooks build

save: ready ## run one notebook and keep its outputs in notebooks/: NB=01
	@$(RUN) -m tools.notebooks save "$$NB"
	@$(RUN) -m tools.readme build

pretrain: ready ## train the course's own base model and its control anew (about 15 minutes)
	@$(RUN) -m benchmarks.pretraining --ship
	@$(RUN) -m benchmarks.pretraining --control --ship

replicate-memory: ## predict the published memory tables with the libraries of their time
	@$(if $(PYTHON),,echo "No Python 3.11 or later was found." >&2; exit 1)
	@"$(PYTHON)" -E -m tools.replicate_memory

replay: ready ## predict what others measured on their GPUs, beside what they measured
	@$(RUN) -m benchmarks.replay

atlas: ready ## predict the memory of common trainings, for the site's calculator (about an hour)
	@$(RUN) -m benchmarks.atlas

slides: ready ## build the slides: build/slides/deck.html and deck.pdf (needs Node.js; the PDF a browser)
	@$(RUN) -m tools.slides build

site: ready ## build the site: notebooks, slides, reference, cards, timings, into build/site
	@$(RUN) -m tools.site

drift: ready ## what the course calls, held against the lowest, pinned and newest libraries
	@$(RUN) -m tools.drift try

doctor: ready ## what this machine has, and what the course would use
	@$(RUN) -m course_utils doctor
