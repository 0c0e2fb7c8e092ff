# Everything sets itself up: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
PHOTO := docs/images/coffee.jpg

.PHONY: setup demo test lint benchmark clean

setup: $(VENV)/.installed

# torch comes first and alone, pinned: a resolver free to choose would fetch gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[export,cpu,tensorrt-rtx,plot,jobs,dev]'
	touch $@

demo: setup
	$(BIN)/vtexport build --model mini --method prunesid --keep 64 --output $(DEMO)/mini
	$(BIN)/vtexport run $(DEMO)/mini --image $(PHOTO) --prompt "What is on the table?" --max-new-tokens 24
	$(BIN)/vtexport show $(DEMO)/mini --image $(PHOTO) --output $(DEMO)/kept.png

test: setup
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

benchmark: setup
	$(BIN)/python benchmarks/prunesid_op.py --threads 2
	$(BIN)/python benchmarks/startup.py

clean:
	rm -rf build dist
