# Everything sets itself up: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
WORKERS ?= 2
PHOTO := docs/images/coffee.jpg

.PHONY: setup native demo test lint benchmark gpu-check real-check clean

setup: $(VENV)/.installed

# torch comes first and alone, pinned: a resolver free to choose would fetch gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[export,cpu,tensorrt-rtx,plot,jobs,serve,camera,dev]'
	touch $@

# Without a C++ compiler or CMake the function bodies serve; `vtexport doctor` says so, and what that costs.
native: setup
	-$(BIN)/vtexport plugins build --cpu-only

demo: native
	$(BIN)/python tools/render_scene.py $(DEMO)/scene.png
	$(BIN)/vtexport build --model mini --method none --output $(DEMO)/mini
	$(BIN)/vtexport build --model mini --method prunesid --keep 64 --output $(DEMO)/mini
	for plan in none prunesid-64; do \
	  for question in "What word is written?" "How many triangles are there?" "Where is the red triangle?"; do \
	    echo "$$plan, scene: $$question" && \
	    $(BIN)/vtexport run $(DEMO)/mini --plan $$plan --image $(DEMO)/scene.png --prompt "$$question" || exit 1; \
	  done; \
	  echo "$$plan, photograph: How many objects are there?" && \
	  $(BIN)/vtexport run $(DEMO)/mini --plan $$plan --image $(PHOTO) --prompt "How many objects are there?" || exit 1; \
	done
	$(BIN)/vtexport show $(DEMO)/mini --plan prunesid-64 --image $(DEMO)/scene.png --output $(DEMO)/kept-scene.png
	$(BIN)/vtexport show $(DEMO)/mini --plan prunesid-64 --image $(PHOTO) --output $(DEMO)/kept.png

# Two workers, each with whole files: fixtures that build bundles and libraries are made once a file.
test: native
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'plugins/*.h' '*.cpp' '*.cu' '*.cuh' 'tests/plugins/*.h')

benchmark: native
	$(BIN)/python benchmarks/prunesid_op.py --threads 2
	$(BIN)/python benchmarks/native_cpu.py --threads 2
	$(BIN)/python benchmarks/startup.py

# With the Python, PyTorch and nvcc that are on the machine; see docs/gpu-check.md. Options: make gpu-check ARGS=--quick
gpu-check:
	PYTHONPATH=$(CURDIR):$(CURDIR)/tools:$(CURDIR)/benchmarks $(PYTHON) -m gpu_check $(ARGS)

# With your own weights: make real-check MODEL=llava; see docs/real-check.md. Options: ARGS='--method vitcop --keep 128'
real-check: native
	@test -n "$(MODEL)" || { echo "make: give the checkpoint, as in make real-check MODEL=llava" >&2; exit 2; }
	$(BIN)/python tools/real_check.py --model '$(MODEL)' $(ARGS)

clean:
	rm -rf build dist
