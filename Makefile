# Everything runs in one virtual environment that the first target builds; python3, make and git are all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# A file stays with one worker, so that its fixtures and compiled programs are made once.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# Which tests `make test-slow` takes; `.ci/run` leaves out the longest.
SELECTION ?= slow
# Slow tests compute for minutes: worth optimised programs, unlike the fast ones (tests/conftest.py).
SLOW := XLA_FLAGS=--xla_backend_optimization_level=1 $(PYTEST)

# The environment that serves language models, see docs/agent.md; TORCH_CPU_INDEX names an index with PyTorch for the CPU.
VLLM := .venv-vllm
# The one that trains them, see docs/curriculum.md.
TRAIN := .venv-train
DEVICE ?=
MODEL ?= tiny

.PHONY: help demo vllm llm-train demo-llm curriculum tiny-agent curriculum-smoke checkpoints test test-slow test-all lint types lock clean

help:
	@echo "make demo      set up, then the whole way on the embedded cohort: data, world model, agent, evaluation"
	@echo "make vllm      sets up vLLM beside it, for what this machine has (DEVICE=cpu, cuda or tpu says otherwise)"
	@echo "make llm-train sets up what trains language models, in an environment of its own too"
	@echo "make demo-llm  serves a tiny language model and lets it decide (MODEL=smollm2: a small real one)"
	@echo "make curriculum teaches that model, in three stages   make curriculum-smoke tries them in minutes"
	@echo "make test      set up, then the fast tests"
	@echo "make test-slow the slow tests, with PyTorch        make test-all  every test"
	@echo "make checkpoints trains the world models of the package"
	@echo "make lint      ruff                  make types     mypy"

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" || \
		{ echo "error: $(PYTHON): expected Python 3.11 to 3.13, found $$($(PYTHON) -V); set PYTHON=..."; exit 2; }
	@echo "Setting up $(VENV) (about two minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	$(BIN)/pip install -q --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-truth.txt
	$(BIN)/pip install -q -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps -r requirements-truth.txt
	@touch $@

# Large, so only where it is needed.
$(VENV)/.installed-torch: $(VENV)/.installed-dev requirements-torch.txt
	$(BIN)/pip install -q -r requirements-torch.txt
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python prepare_data.py --config configs/demo.yaml
	$(BIN)/python train_wm.py --config configs/demo.yaml
	@# The last two need nothing of each other, so each gets a core; the tables of one wait for the other's.
	$(BIN)/python evaluate.py --config configs/demo.yaml > runs/demo/evaluation.txt & \
	$(BIN)/python agent_loop.py --config configs/demo.yaml; agent=$$?; \
	wait $$!; evaluation=$$?; cat runs/demo/evaluation.txt; \
	echo "Report: runs/demo/agent/report.html"; exit $$((agent + evaluation))

vllm:
	@$(PYTHON) llm/install.py vllm $(VLLM) $(if $(DEVICE),--device $(DEVICE))

llm-train:
	@$(PYTHON) llm/install.py train $(TRAIN) $(if $(DEVICE),--device $(DEVICE))

LLM := --config configs/demo_llm.yaml --checkpoint sepsis_jax/checkpoints/carry
OF_SMOLLM2 := --llm.tool_choice required --llm.prompts null
demo-llm: $(VENV)/.installed vllm $(if $(filter smollm2,$(MODEL)),runs/demo_llm/smollm2/config.json)
	$(BIN)/python prepare_data.py --config configs/demo_llm.yaml
	$(BIN)/python agent_loop.py $(LLM) --agent.backend llm \
		--serve $(if $(filter smollm2,$(MODEL)),runs/demo_llm/smollm2 $(OF_SMOLLM2),sepsis_jax/checkpoints/tiny_agent)

runs/demo_llm/smollm2/config.json: | vllm
	$(VLLM)/bin/python sepsis_jax/curriculum/small_models.py smollm2 --out runs/demo_llm/smollm2

# Teaches the tiny language model, hours on two cores; a stopped run goes on when started again.
CURRICULUM := --config configs/curriculum_tiny.yaml --checkpoint sepsis_jax/checkpoints/carry
STAGES ?= data dynamics demonstrations rl
curriculum: $(VENV)/.installed vllm llm-train
	test -d runs/curriculum_tiny/episodes || $(BIN)/python prepare_data.py --config configs/curriculum_tiny.yaml
	for stage in $(STAGES); do $(TRAIN)/bin/python train_agent.py --stage $$stage $(CURRICULUM) || exit 2; done

# The tiny language model that comes with the package: what the three stages leave.
tiny-agent:
	$(MAKE) curriculum
	cp runs/curriculum_tiny/curriculum/rl/model/* sepsis_jax/checkpoints/tiny_agent/

curriculum-smoke: $(VENV)/.installed-dev vllm llm-train
	$(SLOW) tests/curriculum/test_stages.py

# The world models that come with the package, about an hour on two cores; a stopped run goes on when started again.
PUBLISHED := --world_model.architecture published --world_model.members 1 --world_model.layers 2 --world_model.dropout 0.2
checkpoints: $(VENV)/.installed
	$(BIN)/python prepare_data.py --config configs/embedded.yaml
	$(BIN)/python train_wm.py --config configs/embedded.yaml --out sepsis_jax/checkpoints/carry
	$(BIN)/python train_wm.py --config configs/embedded.yaml $(PUBLISHED) --out sepsis_jax/checkpoints/published
	$(BIN)/python evaluate.py --config configs/embedded.yaml --what world-model \
		--by sex,age_band,charlson_band,ventilated,any_vasopressor --json sepsis_jax/checkpoints/figures.json

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-torch
	$(SLOW) -m "$(SELECTION)"

test-all: test test-slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# Needs uv. One lock for Python 3.11 to 3.13; environment markers choose.
lock:
	uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate pyproject.toml -o requirements.txt
	sed -i '1i # Lock of everything but vLLM, which has an environment of its own: make vllm, requirements-vllm-*.txt.' requirements.txt
	uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --extra dev pyproject.toml -o requirements-dev.txt
	# What trains has this project beside it, and the PyTorch and transformers of vLLM, which reads what it writes.
	grep -E '^(torch|transformers|tokenizers)==' requirements-vllm-cpu.txt > .train-pins.txt
	uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --extra train -c requirements.txt -c .train-pins.txt \
		pyproject.toml | grep -vE '^(nvidia-|cuda-|triton==)' > requirements-train-cpu.txt
	# On GPUs vLLM writes the answers of stage III in the same process; it wants a NumPy of its own.
	grep -v '^numpy==' requirements.txt >> .train-pins.txt
	uv pip compile -q --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --extra train --extra vllm \
		-c .train-pins.txt pyproject.toml -o requirements-train-cuda.txt
	sed -i '1i # What trains language models, and vLLM, for NVIDIA GPUs on Python 3.12 and Linux (x86-64). Resolved, not tried: make llm-train.' \
		requirements-train-cuda.txt
	rm .train-pins.txt

clean:
	rm -rf $(VENV) $(VLLM) $(TRAIN) .pytest_cache .mypy_cache .ruff_cache .hypothesis
