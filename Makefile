# Every target works on a bare machine with Python 3.11 or newer: it makes the environment first.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python

.PHONY: demo test long browser parity sanitize package aot torture lowest newest lint

demo: .venv/installed
	$(BIN)/dcls-jax demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

# Whole programs, run, killed and run again, in one process and several: ten minutes on two cores.
long: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m long

# The report in a browser; needs Chromium in the PATH, which is not on PyPI (Debian's package is `chromium`).
browser: .venv/installed
	$(UV) $(BIN)/python --editable ".[test,browser]"
	$(BIN)/python -m pytest tests/eval/test_page_browser.py

# The tests against PyTorch, those against recorded numbers, compiled as for users, and what `make test` leaves out. What
# would replace torch by another build comes without its dependencies.
ORIGINALS = $(shell $(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['parity'])")
ALONE := torchvision% timm% grad-cam%

parity: .venv/installed
	$(BIN)/python -m pip install --quiet $(filter-out $(ALONE),$(ORIGINALS))
	$(BIN)/python -m pip install --quiet --no-deps $(filter $(ALONE),$(ORIGINALS))
	DCLS_JAX_TEST_OPTIMISED=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "(parity or optimised or slow) and not long"

# The native kernels under the address and undefined behaviour sanitizers; needs g++.
SANITIZED = build/sanitized/_kernels.so
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)

sanitize: $(SANITIZED)
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -n 0 -m "not parity" -k native \
		--native-library $(SANITIZED) tests/test_lowerings.py tests/test_transformations.py tests/eval/test_rank.py

$(SANITIZED): .venv/installed
	mkdir -p $(@D)
	$(CXX) -shared -fPIC -O1 -g -std=c++17 -w -fsanitize=address,undefined -fno-sanitize-recover=undefined \
		-I$(shell $(BIN)/python -c "import jaxlib; print(jaxlib.__path__[0])")/include dcls_jax/native/*.cc -o $@

# What is built and shipped: wheels with and without a compiler, and the source distribution.
package: .venv/installed
	$(BIN)/python -m pytest -m package

# What users run, compiled for a TPU v5e and an H200 by their compilers, which need neither; 2 GB, ten minutes on two cores.
aot: .venv/installed
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) .venv-aot
	$(UV) .venv-aot/bin/python --editable ".[test,aot]"
	.venv-aot/bin/python -m pytest -n auto --dist worksteal -m aot

# Commands killed at random moments and run again; ten minutes on two quiet cores. KILLS: how many.
KILLS ?= 100

torture: .venv/installed
	$(BIN)/python tests/torture.py --kills $(KILLS)

# The tests with the lowest versions that pyproject.toml declares, and with the newest there are, for the Python that
# NEWEST_PYTHON names. SUBSET: which tests; every one unless given.
NEWEST_PYTHON ?= $(PYTHON)
SUBSET ?=
OF_VERSIONS := not package and not long and not parity and not aot

lowest: .venv/installed
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) .venv-lowest
	$(UV) .venv-lowest/bin/python --resolution lowest-direct --editable ".[test]"
	.venv-lowest/bin/python -m pytest -n auto --dist worksteal -m "$(OF_VERSIONS)" $(SUBSET)

newest: .venv/installed
	$(BIN)/uv venv --quiet --allow-existing --python $(NEWEST_PYTHON) .venv-newest
	$(UV) .venv-newest/bin/python --upgrade --editable ".[test]"
	.venv-newest/bin/python -m pytest -n auto --dist worksteal -m "$(OF_VERSIONS)" $(SUBSET)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml setup.py $(wildcard dcls_jax/native/*.cc dcls_jax/native/*.inc dcls_jax/native/*.h)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(UV) $(BIN)/python --editable ".[test]"
	touch $@
