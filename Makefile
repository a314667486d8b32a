# Two commands matter: `make demo` and `make test`. Each needs git, make and Python 3.11 to 3.13,
# and does everything else itself. PYTHON=/path/to/python chooses the interpreter.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INTERPRETED := tests/kernels/interpreted
BROWSER := tests/browser
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu test-s3 test-peers test-pages test-attribution check format wheel docs bench bench-gpu clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 26

demo: .venv/.installed  ## train an SAE on the embedded model and report on it: about 4 minutes
	@rm -rf runs/demo
	@$(BIN)/python train.py name=demo
	@echo "The report: runs/demo/report.html   The dictionary: dictlearn.load('runs/demo/dictionary')"

test: .venv/.installed  ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --ignore $(INTERPRETED) \
		--ignore $(BROWSER)
	@OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 $(INTERPRETED)

test-gpu: .venv/.installed  ## run the tests of kernels and of reading ahead on a GPU, for real
	@$(BIN)/python -c 'import torch; torch.cuda.is_available() or exit("make test-gpu: no CUDA device")'
	@env -u TRITON_INTERPRET $(BIN)/python -m pytest -q tests/kernels tests/sources/test_live.py

test-s3: .venv/.installed  ## keep activations on an S3 server here, which loses, delays and cuts what it is asked for
	@$(INSTALL) -e '.[test-s3]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/activations/test_s3.py

test-peers: .peers/.installed  ## load exports with SAELens, sparsify and dictionary_learning, and theirs here: about 3 minutes
	@OMP_NUM_THREADS=1 .peers/bin/python -m pytest -q -n auto --maxprocesses 4 tests/peers

test-pages: .venv/.installed  ## click through the pages of features and of graphs in Chromium, which must be installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(BROWSER)

test-attribution: .venv/.installed .attribution/.installed  ## run circuit-tracer on exported dictionaries: about 2 minutes
	@OMP_NUM_THREADS=1 .attribution/bin/python -m pytest -q -c tests/attribution/pytest.ini tests/attribution

check: .venv/.installed-dev  ## format, lint, types and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/.installed-dev  ## make the formatter and the linter's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: .venv/.installed-dev  ## build dist/*.whl
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .

docs: .venv/.installed  ## write the figures of README.md and docs/ anew, from benchmarks/results and quick commands
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/docs_figures.py

bench: .peers/.installed  ## time steps beside dense autograd and peers, on a quiet CPU: 40 minutes
	@.peers/bin/python scripts/bench.py all
	@.peers/bin/python scripts/profile_train.py
	@.peers/bin/python scripts/docs_figures.py

bench-gpu: .peers/.installed  ## the same on a GPU: about half an hour
	@.peers/bin/python scripts/bench.py all --device cuda
	@.peers/bin/python scripts/profile_train.py
	@.peers/bin/python scripts/docs_figures.py

clean:  ## remove the environment and build outputs; runs/ stays
	rm -rf .venv .peers .attribution dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/.python:
	@test -n "$(PYTHON)" || { echo "dictlearn needs Python 3.11, 3.12 or 3.13 with venv and pip;" \
		"none was found on PATH. Install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt
	@echo "Installing dictlearn into .venv; the first time takes a few minutes"
	@$(INSTALL) -e '.[test]'
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(INSTALL) -e '.[dev]'
	@touch $@

# The peers bring their own dependencies: an environment of their own. dictionary-learning asks for
# an nnsight that no other can live with, and works with the newer one: its dependencies are left out.
.peers/.installed: .venv/.python pyproject.toml constraints.txt
	@test -x .peers/bin/python || $(PYTHON) -m venv .peers
	@.peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers,test]'
	@.peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dictionary-learning==0.1.0
	@touch $@

# circuit-tracer wants an older transformers than dictlearn: another one.
.attribution/.installed: .venv/.python constraints-attribution.txt
	@echo "Installing circuit-tracer into .attribution; the first time takes a few minutes"
	@test -x .attribution/bin/python || $(PYTHON) -m venv .attribution
	@.attribution/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-attribution.txt torch transformers nnsight circuit-tracer pytest
	@touch $@
