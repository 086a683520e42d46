# Every target first sets up .venv once (the stamp below), with the versions of constraints.txt only.
# Needed on the machine: Python 3.11 or newer with its venv module, and make. Neither git nor a
# compiler is.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.softdtw-kernels-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help install example example-japanese-vowels example-plots example-vttwins test fuzz lint \
	coverage docs registers bench bench-pages bench-peers gpu gpu-ready gpu-tests gpu-benchmark package \
	release-check clean

help:
	@echo 'make example      all examples: real recordings, and VT-TWINS; pictures in build/'
	@echo 'make test         run the tests and doctests, with the same examples every time'
	@echo 'make fuzz         property tests with new examples, until one fails or Ctrl-C;'
	@echo '                  ROUNDS=n, MINUTES=m, FUZZ=laws|emulator|all, SEED=s, THOROUGH=1'
	@echo 'make lint         ruff, mypy and codespell'
	@echo 'make docs         the pages, in build/docs; GALLERY=0 runs none of its scripts'
	@echo 'make coverage     of the Python that is not compiled; fails below 90 %'
	@echo 'make package      sdist and wheel in dist/, and the quick tests of the one against the other'
	@echo 'make release-check  everything that a release must pass'
	@echo 'make registers    compile the CUDA kernels that changed; records registers for the tests'
	@echo 'make bench        the asv suite of benchmarks/'
	@echo 'make bench-pages  what that has recorded, as pages in build/docs/benchmarks'
	@echo 'make bench-peers  speed, memory and errors next to other implementations: 8 minutes;'
	@echo '                  writes benchmarks/results, the charts, and the tables of the pages'
	@echo 'make gpu          tests and measurements on a machine with a CUDA device: ten minutes; writes'
	@echo '                  build/benchmarks/gpu.json; gpu-tests and gpu-benchmark do more of either'

install: $(STAMP)

# pip comes first, as older ones know no groups; then setuptools, which builds without isolation, so
# that its version is a pinned one too.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV) \
		|| { echo 'The venv module is missing; on Debian: apt install python3-venv' >&2; exit 1; }
	@echo 'Installing into $(VENV) (once)'
	@$(PIP) install -c constraints.txt pip setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[examples]' --group dev
	@touch $@

example: example-japanese-vowels example-plots example-vttwins

example-japanese-vowels: $(STAMP)
	MPLBACKEND=Agg $(BIN)/python -m examples.japanese_vowels --output build/japanese_vowels

example-plots: $(STAMP)
	for name in examples/plot_*.py; do \
		MPLBACKEND=Agg $(BIN)/python -m examples.$$(basename $$name .py) || exit 1; \
	done

example-vttwins: $(STAMP)
	$(BIN)/python -m examples.vttwins.synthetic --out build/vttwins/data
	$(BIN)/python -m examples.vttwins.train demo
	$(BIN)/python -m examples.vttwins.evaluate build/vttwins/run
	MPLBACKEND=Agg $(BIN)/python -m examples.vttwins.pictures build/vttwins/run

# One thread a worker: the workers already fill the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		--doctest-modules tests softdtw_kernels

# exec: Ctrl-C and an end of make reach the process that ends the others.
FUZZ ?= all
fuzz: $(STAMP)
	@OMP_NUM_THREADS=1 MPLBACKEND=Agg exec $(BIN)/python tests/fuzz.py --which $(FUZZ) \
		--workers $(WORKERS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(SEED),--seed $(SEED)) $(if $(THOROUGH),--thorough)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# Offline. A script of the gallery runs once, and again when it has changed.
docs: $(STAMP)
	MPLBACKEND=Agg $(BIN)/python -m sphinx -b html -W --keep-going -q -d build/docs-cache \
		$(if $(GALLERY),-D plot_gallery=$(GALLERY)) docs build/docs
	@echo 'Open build/docs/index.html'

# What `make bench` has recorded, commit by commit, as pages of the documentation.
bench-pages: $(STAMP)
	@ls build/asv/results/*/*.json >/dev/null 2>&1 || { echo 'make bench records first' >&2; exit 1; }
	cd benchmarks && ../$(BIN)/asv publish
	@mkdir -p build/docs && rm -rf build/docs/benchmarks && cp -r build/asv/html build/docs/benchmarks
	@echo 'Open build/docs/benchmarks/index.html through `python -m http.server`'

# Of the Python that is not compiled; longer than `make test`, and no part of it.
coverage: $(STAMP)
	@$(PIP) install -c constraints.txt --group coverage
	@rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/coverage run -m pytest -q -n $(WORKERS) --dist worksteal \
		--doctest-modules $(or $(COVERED),tests softdtw_kernels)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# What changed is compiled for seven GPUs: at most six minutes on two cores.
registers: $(STAMP)
	$(BIN)/python tests/cuda_registers.py
	$(BIN)/python tests/cuda_instructions.py --record

# asv keeps results only under a commit, so without git it just prints them.
bench: $(STAMP)
	cd benchmarks && ../$(BIN)/asv machine --yes >/dev/null
	cd benchmarks && ../$(BIN)/asv run -E existing:same --show-stderr \
		$$(git rev-parse HEAD >/dev/null 2>&1 && echo --set-commit-hash $$(git rev-parse HEAD))

# PEERS adds the paths of those that no registry holds; see benchmarks/compare.py.
PEERS_STAMP := .venv-peers/.installed
PEERS_PIP := .venv-peers/bin/python -m pip --disable-pip-version-check -q

$(PEERS_STAMP): $(STAMP) benchmarks/peers-constraints.txt
	@.venv-peers/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv .venv-peers
	@$(PEERS_PIP) install -c benchmarks/peers-constraints.txt setuptools
	@$(PEERS_PIP) install -c benchmarks/peers-constraints.txt --no-build-isolation -e . \
		ddtw dtw-loss-functions matplotlib pysdtw scipy tslearn
	@touch $@

bench-peers: $(PEERS_STAMP)
	.venv-peers/bin/python -m benchmarks.compare --output benchmarks/results/peers-cpu.json $(PEERS)
	.venv-peers/bin/python -m benchmarks.charts

# CUDA_EXTRA is that of the CUDA version torch is built for. `make gpu GPU_PYTHON=python3` installs
# nothing and uses what that Python has. GPU_PYTEST may say `-n 8`, to compile in eight processes.
CUDA_EXTRA ?= cuda13
ifdef GPU_PYTHON
gpu-ready:
else
GPU_PYTHON := $(BIN)/python
gpu-ready: $(VENV)/.installed-$(CUDA_EXTRA)
endif

gpu: gpu-ready
	$(GPU_PYTHON) -m benchmarks.gpu_session --output build/benchmarks/gpu.json $(PEERS)

gpu-tests: gpu-ready
	$(GPU_PYTHON) -m pytest $(GPU_PYTEST) tests/gpu

gpu-benchmark: gpu-ready
	$(GPU_PYTHON) -m benchmarks.gpu --output build/benchmarks/gpu.json $(PEERS)

$(VENV)/.installed-$(CUDA_EXTRA): $(STAMP)
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[examples,$(CUDA_EXTRA)]' --group dev
	@touch $@

package: $(STAMP)
	.ci/package

release-check: $(STAMP)
	@$(PIP) install -c constraints.txt --group release
	$(BIN)/python .ci/release_check.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
