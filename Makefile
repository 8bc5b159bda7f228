# Every target works on a bare machine with Python 3.11 or newer: it makes the environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test parity lint

demo: .venv/installed
	$(BIN)/dcls-jax demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

# The tests against PyTorch. torchvision and timm come without their dependencies: they would replace torch.
parity: .venv/installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet dcls==0.1.1 huggingface_hub pyyaml opencv-python-headless scikit-learn ttach
	$(BIN)/python -m pip install --quiet --no-deps timm==1.0.31 torchvision==0.28.0 grad-cam==1.5.7
	$(BIN)/python -m pytest -n auto --dist loadfile -m parity

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml setup.py $(wildcard dcls_jax/native/*.cc dcls_jax/native/*.inc dcls_jax/native/*.h)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
