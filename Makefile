PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# compiling all 21,000 modules takes a core for a minute, and most are never imported
QUIETLY := --quiet --disable-pip-version-check --no-compile

.PHONY: help setup demo monitoring han kubectl test tests lint lock fuzz bench peers clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.installed  ## install everything that requirements.lock names

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install $(QUIETLY) -r requirements.lock
	$(RUN)/python -m pip install $(QUIETLY) --no-deps --no-build-isolation -e .
	touch $@

demo: setup  ## four methods on glyphs, from shards to report
	$(RUN)/perennial demo

monitoring: setup  ## the demo run, and a Prometheus with our alert rules beside it
	$(RUN)/python -m monitoring.prometheus runs/demo & \
	trap "kill $$! 2>/dev/null" EXIT INT TERM; \
	$(RUN)/perennial demo && echo "Prometheus goes on until Ctrl-C" && wait

test: setup  ## every check that CI makes: mypy takes one core for a minute, beside the first tests
	$(MAKE) --jobs 2 --no-print-directory lint tests

tests: setup  ## the tests, three files at a time: many of them wait
	$(RUN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff and mypy
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

HAN := data/han-fonts

$(HAN)/.fetched: configs/han_fonts.txt
	mkdir -p $(HAN)
	cd $(HAN) && apt-get download $$(cat $(CURDIR)/configs/han_fonts.txt)
	for package in $(HAN)/*.deb; do dpkg -x $$package $(HAN) && rm $$package || exit 1; done
	touch $@

han: setup $(HAN)/.fetched  ## a dataset of MS1M's size from Debian's Han fonts (529 MB to fetch)
	$(RUN)/perennial shards glyphs --script han --fonts $(HAN) --min-fonts 1 --query-fonts 4 --out data/han

kubectl: .tools/usr/bin/kubectl  ## Debian's kubectl with its old kustomize, beside any that is installed

.tools/usr/bin/kubectl:
	mkdir -p .tools
	cd .tools && apt-get download kubernetes-client && dpkg -x kubernetes-client_*.deb . && rm kubernetes-client_*.deb

fuzz: setup  ## damaged files for every reader, 100,000 each: for nights
	$(RUN)/python -m tests.fuzz

bench: setup  ## the benchmarks, quickly
	for name in neighbourhoods data step compatible classifier evaluation; do $(RUN)/python -m benchmarks.$$name --quick || exit 1; done

peers:  ## an environment with mosaicml-streaming, for benchmarks.data to compare with
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check mosaicml-streaming==0.13.0 torch==2.11.0 torchvision==0.26.0

lock:  ## write requirements.lock from a fresh environment
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77' '.[dev]'
	.venv-lock/bin/python -m pip freeze --exclude perennial-id --all | grep -v '^pip==' > requirements.lock
	rm -rf .venv-lock

clean:  ## remove environment and caches, not data or runs
	rm -rf $(VENV) .venv-lock .venv-peers .pytest_cache .mypy_cache .ruff_cache build *.egg-info
