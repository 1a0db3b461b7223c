# The words of this project; CI says the same ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A pip index that carries CPU builds of torch, where the default one does not: make setup TORCH_INDEX=URL
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help setup setup-dev serve check simulate fuzz contracts test bench bench-closed schemas soak chaos kernels pods hosts train evaluate report clean

help:
	@echo "make setup     install what serving needs into $(VENV)"
	@echo "make serve     serve the embedded model on http://127.0.0.1:8000"
	@echo "make check     ruff, mypy strict, import floors"
	@echo "make test      every test that this machine can run"
	@echo "make simulate  10,000 schedules of faults; one of them again: ARGS=--hypothesis-seed=N"
	@echo "make fuzz      10,000 requests that are almost sound, over a socket: none is answered by a fault of ours"
	@echo "make contracts other people's clients and tools against the served model, in a venv of their own (node for one)"
	@echo "make bench     what is served in time beside transformers, each feature on and off; ARGS=--quick, --write"
	@echo "make bench-closed  tokens/s, TTFT and TPOT at 1 and 16 requests, beside transformers at its best"
	@echo "make schemas   answers to 1,000 random JSON schemas; ARGS=--samples=N for others"
	@echo "make soak      ten minutes at twice what it can serve: refusals, queue, memory"
	@echo "make chaos     kill, suspend and spoil processes under load; docs/reliability.md"
	@echo "make kernels   every shipped configuration of the GPU kernels, compiled ahead for sm_90 (no GPU; 2 minutes)"
	@echo "make pods      the pods of k8s/, each on a host of its own (Linux, root; 3 minutes)"
	@echo "make hosts     several hosts on this machine, and the network between them failing (Linux, root; minutes)"
	@echo "make train     train the embedded model again (a GPU, minutes); overwrites demo/checkpoint"
	@echo "make evaluate  ask the embedded model held-out questions, over HTTP"
	@echo "make report    docs/model-report.md from demo/results"

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "shoal needs Python >= 3.11; this is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (once) ..."
	@$(PIP) install "$$(grep '^torch==' constraints.txt)" numpy -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing shoal (once) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "installing what checks and tests need (once) ..."
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(VENV)/.ready

setup-dev: $(VENV)/.ready-dev

serve: setup
	@$(BIN)/shoal serve $(ARGS)

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

simulate: setup-dev
	$(BIN)/python -m pytest tests/simulation -m "not ray" --hypothesis-profile=simulate --timeout=3600 $(ARGS)

fuzz: setup-dev
	SHOAL_FUZZ=10000 $(BIN)/python -m pytest -n 0 tests/unit/test_attacks.py -k whatever_is_sent --timeout=3600 $(ARGS)

TOOLS := .venv-contracts
TOOLS_PIP := $(TOOLS)/bin/python -m pip --disable-pip-version-check --quiet

$(TOOLS)/.ready: constraints-contracts.txt tests/contracts/clients/package.json
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	@echo "installing the tools of others (once, gigabytes) ..."
	@$(TOOLS_PIP) install "$$(grep '^torch==' constraints-contracts.txt)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(TOOLS_PIP) install -c constraints-contracts.txt -r tests/contracts/requirements.txt
	@mkdir -p $(TOOLS)/node && cp tests/contracts/clients/package.json $(TOOLS)/node/
	@if command -v npm >/dev/null; then npm --prefix $(TOOLS)/node install --no-audit --no-fund --silent; fi
	@touch $@

contracts: setup-dev $(TOOLS)/.ready
	$(BIN)/python -m pytest -m contracts -n 0 tests/contracts --timeout=1800 $(ARGS)

test: setup-dev
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -m "not ray"
	$(BIN)/python -m pytest -m ray
endif

bench: setup-dev
	$(BIN)/python -m bench.capacity $(ARGS)

bench-closed: setup-dev
	$(BIN)/python -m bench.serving $(ARGS)

schemas: setup-dev
	$(BIN)/python -m bench.schemas $(ARGS)

soak: setup-dev
	$(BIN)/python -m bench.soak --minutes 10 $(ARGS)

chaos: setup
	$(BIN)/shoal chaos --report docs/reliability.md $(ARGS)

kernels: setup-dev
	$(BIN)/python -m pytest -m ahead tests/gpu $(ARGS)

pods: setup-dev
	$(BIN)/python -m pytest -m pods -n 0 tests/ray/test_pods.py $(ARGS)

hosts: setup-dev
	$(BIN)/python -m pytest -m hosts -n 0 tests/ray/test_hosts.py $(ARGS)

train: setup
	$(BIN)/python -m demo.train --results demo/results --export demo/checkpoint $(ARGS)

evaluate: setup-dev
	$(BIN)/python -m demo.evaluate $(ARGS)

report: setup-dev
	$(BIN)/python -m demo.report $(ARGS)

clean:
	rm -rf $(VENV) $(TOOLS) build *.egg-info
