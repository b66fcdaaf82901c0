# `make demo` and `make test` need Python 3.11+, make and a network; they create .venv themselves.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
BIN := $(VENV)/bin

.PHONY: setup demo test lint parity bench gpu-check clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Graftwork needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/graftwork demo

# NVIDIA's compiler and Numba's CUDA target, for tests that compile CUDA code; they need no GPU. Not for the demonstration.
$(VENV)/.cuda-tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'nvidia-cuda-nvrtc>=13' 'numba-cuda>=0.4' \
	  || echo "nvidia-cuda-nvrtc or numba-cuda not installed: tests that compile CUDA code are skipped"
	touch $@

# MPI for data-parallel training; the tests that start several processes are skipped without it.
$(VENV)/.mpi: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mpi4py>=4' 'mpich>=4' \
	  || echo "mpi4py or mpich not installed: tests that start several processes are skipped"
	touch $@

test: setup $(VENV)/.cuda-tools $(VENV)/.mpi
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# Keras in an environment of its own; ARGS="resnet50 vgg16" limits it, ARGS="--resume" goes on after an interruption.
parity: $(PARITY)/.installed
	$(PARITY)/bin/python scripts/parity.py $(ARGS)

$(PARITY)/.installed: pyproject.toml
	test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --editable . 'keras>=3.10' jax
	touch $@

# Every peer that is installed takes part: pip install '.[bench]', and a CPU build of torch.
bench: setup
	$(BIN)/python -m bench

# Runs from a plain checkout with the machine's own Python: nothing is installed.
gpu-check:
	PYTHONPATH=. $(PYTHON) -m bench.gpu_check

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
