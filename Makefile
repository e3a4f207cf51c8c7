# `make demo` and `make test` need Python 3.11 or newer and nothing else; both make .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# One thread for each worker: the tests' tensors are tiny, and the workers share the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# It lies beside the newest one, which the environment has.
OLDEST_TRITON := .venv/triton-3.6.0

.DEFAULT_GOAL := help
.PHONY: help demo compress arma video bayes lipschitz test test-kernels test-kernels-oldest fuzz lint bench clean

help:
	@echo "make demo      train a small network of expressions on handwritten digits, filter a photograph"
	@echo "make compress  train, tensorise and distil a network by every form: two tables, minutes on two cores"
	@echo "make arma      what ARMA layers see, and what keeps their training stable: pictures, minutes on two cores"
	@echo "make video     Conv-TT-LSTM and ConvLSTM predict moving digits: a table and a strip of frames, minutes on two cores"
	@echo "make bayes     digits with calibrated uncertainty: Bayesian quantised networks and others, minutes on two cores"
	@echo "make lipschitz  digits classified with certificates: orthogonal networks and others, minutes on two cores"
	@echo "make test      run all tests but those of the kernels"
	@echo "make test-kernels  run the tests of the Triton kernels: by triton's interpreter, on a GPU if there is one"
	@echo "make test-kernels-oldest  the same with the oldest triton that convein works with, without the bench"
	@echo "make fuzz      the long run: thousands of random expressions against the oracle, 200,000 random texts"
	@echo "make lint      ruff and mypy"
	@echo "make bench     measure the engine on this machine; rows go to bench/results"
	@echo "make clean     remove what the tools left behind (.venv stays: rm -r .venv to start over)"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "convein needs Python 3.11 or newer, and '$(PYTHON)' is not: say which to use, as in 'make test PYTHON=python3.12'"; \
		exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python bench/demo

compress: $(STAMP)
	$(BIN)/python bench/compress

arma: $(STAMP)
	$(BIN)/python bench/arma

video: $(STAMP)
	$(BIN)/python bench/video

bayes: $(STAMP)
	$(BIN)/python bench/bayes

lipschitz: $(STAMP)
	$(BIN)/python bench/lipschitz

test: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto

test-kernels: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto tests/kernels

$(OLDEST_TRITON)/installed: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --upgrade --no-deps --target $(OLDEST_TRITON) triton==3.6.0
	touch $@

test-kernels-oldest: $(OLDEST_TRITON)/installed
	$(ONE_THREAD) PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m pytest -n auto tests/kernels --ignore=tests/kernels/test_bench_gpu.py

fuzz: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto --hypothesis-profile=nightly tests/test_oracle.py
	$(ONE_THREAD) $(BIN)/python tests/fuzz_text.py --cases 200000 --bind

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python bench/run.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache bench/demo/pictures
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
