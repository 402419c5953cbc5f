# driftline: `make` lists the targets. Each brings what it needs: the virtual environment, system packages
# (apt-get on Debian and Ubuntu), Apache Kafka for the tests.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo build test lint bench chaos fuzz-topics sanitize fuzz arm64 clean

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

VENV := .venv
BIN := $(VENV)/bin
C_SOURCES := $(filter-out native/_core.c,$(wildcard native/*.c))
NATIVE := $(C_SOURCES) $(wildcard native/*.h native/build.py)
C_STRICT := -std=c11 -D_DEFAULT_SOURCE -O2 -Wall -Wextra -Wshadow -Werror
# Some options of pytest or of a script, say: make test ARGS="-k drift"
ARGS ?=
CC ?= cc

help:
	@echo "make demo    the whole path on real data, in under two minutes"
	@echo "make test    the test suite, on a real Apache Kafka; ARGS=... goes to pytest"
	@echo "make lint    ruff, pyright, and the C sources with every warning an error"
	@echo "make bench   the benchmarks, one after the other"
	@echo "make chaos   kills the service and three brokers again and again; half an hour; ARGS=\"--kills 20 --seed 7\""
	@echo "make fuzz-topics  a million fuzzed records and 100,000 fuzzed requests; ARGS=\"--records 10000\""
	@echo "make build   only the virtual environment, .venv, with driftline in it"
	@echo "make sanitize  the C core under ASan, UBSan and TSan; SECONDS=... for each"
	@echo "make fuzz    the loader and sequences of operations under libFuzzer; SECONDS=... for each"
	@echo "make arm64   the kernels and the C core, cross-compiled, under qemu"
	@echo "make clean   removes what make made in this directory"

demo: build
	@$(BIN)/driftline demo

build: $(VENV)/.built

$(VENV)/.made:
	@.ci/system python c
	@rm -rf $(VENV)
	@.ci/quietly venv "$(VENV), by $$(.ci/system --python)" "$$(.ci/system --python)" -m venv $(VENV)
	@touch $@

# Without build isolation, so that a changed C file costs a compilation and not a download. build/ goes first:
# what it holds is compared by time of change only, and not with the headers.
$(VENV)/.built: $(VENV)/.made pyproject.toml setup.py $(NATIVE)
	@.ci/quietly install "driftline and what it needs" bash -euo pipefail -c \
		'rm -rf build; $(BIN)/pip install "setuptools>=77" "cffi>=1.17"; $(BIN)/pip install --no-build-isolation -e ".[dev]"'
	@touch $@

test: build
	@.ci/system java chromium
	@.ci/quietly kafka "Apache Kafka, kept in $${XDG_CACHE_HOME:-~/.cache}/driftline" tests/kafka/install.sh
	@$(BIN)/python -m pytest $(ARGS)

lint: build
	@.ci/quietly ruff "check" $(BIN)/ruff check .
	@.ci/quietly ruff "format" $(BIN)/ruff format --check .
	@.ci/quietly pyright "strict" $(BIN)/pyright
	@for source in $(C_SOURCES) $(wildcard tests/native/*.c); do \
		.ci/quietly cc "$$source" $(CC) $(C_STRICT) -Inative -c -o /dev/null "$$source"; done

# With the data of the clone; other data by the scripts' own flags, as benchmarks/RESULTS.md says.
QUESTIONS := topics crash malformed delay ingest freshness shares memory tile encode refinements alarms reencode canary ann churn \
	load filters growth threads runbook watch drift compress scale_out

bench: build
	@.ci/system c++ java
	@.ci/quietly kafka "Apache Kafka, kept in $${XDG_CACHE_HOME:-~/.cache}/driftline" tests/kafka/install.sh
	@.ci/quietly install "the libraries to measure against" $(BIN)/pip install -e ".[peers]"
	@for question in $(QUESTIONS); do \
		echo "bench     benchmarks/$$question.py"; $(BIN)/python benchmarks/$$question.py; done

chaos: SCRIPT := chaos
fuzz-topics: SCRIPT := fuzz

chaos fuzz-topics: build
	@.ci/system java
	@.ci/quietly kafka "Apache Kafka, kept in $${XDG_CACHE_HOME:-~/.cache}/driftline" tests/kafka/install.sh
	@$(BIN)/python benchmarks/$(SCRIPT).py $(ARGS)

SECONDS ?= 60
STRESS := tests/native/stress.c $(C_SOURCES)
STRESS_FLAGS := -std=c11 -D_DEFAULT_SOURCE -O1 -g -fno-omit-frame-pointer -Inative

sanitize:
	@.ci/system c
	@mkdir -p build
	@for kind in address,undefined thread; do \
		echo "sanitize  $$kind, $(SECONDS) seconds"; \
		$(CC) $(STRESS_FLAGS) -fsanitize=$$kind -fno-sanitize-recover=all $(STRESS) -o build/stress-$$kind -lm -lpthread; \
		build/stress-$$kind $(SECONDS) $$RANDOM; done

FUZZ_FLAGS := -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all

fuzz:
	@.ci/system clang
	@for target in load operations; do \
		echo "fuzz      $$target, $(SECONDS) seconds"; \
		mkdir -p build/corpus-$$target; \
		"$$(.ci/system --clang)" $(STRESS_FLAGS) $(FUZZ_FLAGS) tests/native/fuzz_$$target.c $(C_SOURCES) \
			-o build/fuzz-$$target -lm -lpthread; \
		build/fuzz-$$target -max_total_time=$(SECONDS) -max_len=1200 -len_control=0 -timeout=20 -verbosity=0 \
			-artifact_prefix=build/ build/corpus-$$target; done

# The whole core as arm64 has it: kernels against the scalar ones, then the stress program, whose threads qemu runs side by side.
ARM64 := aarch64-linux-gnu-gcc -std=c11 -D_DEFAULT_SOURCE -O2 -Inative -static

arm64:
	@.ci/system arm64
	@mkdir -p build
	@echo "arm64     kernels"
	@$(ARM64) $(wildcard native/kernels*.c) tests/native/kernels_check.c -o build/kernels-arm64 -lm
	@qemu-aarch64 build/kernels-arm64
	@echo "arm64     stress, $(SECONDS) seconds"
	@$(ARM64) $(STRESS) -o build/stress-arm64 -lm -lpthread
	@qemu-aarch64 build/stress-arm64 $(SECONDS) $$RANDOM

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis native/_core.c native/*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean     done; Kafka's jars stay in $${XDG_CACHE_HOME:-~/.cache}/driftline"
