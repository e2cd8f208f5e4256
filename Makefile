# Everything from a bare checkout: `make demo`, `make test`, `make run`.  Each installs what it needs and can be
# run again at no cost.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never

NATIVE_SOURCES := setup.py $(shell find crd/native -name '*.[chS]') crd/native/ffi_build.py
VICTIM_SOURCES := $(wildcard tests/victims/*.c)

.PHONY: demo test run check bench fuzz setup system-packages victims clean

demo: setup
	@$(BIN)/python tests/demo.py

test: setup check victims
	$(BIN)/python -m pytest

# The daemon in the foreground, its state under ./var.
run: setup
	@mkdir -p -m 0700 var
	CRD_DAEMON__STATE_DIR=$(CURDIR)/var CRD_API__SOCKET=$(CURDIR)/var/crd.sock $(BIN)/crd run

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup victims
	$(BIN)/python -m tests.bench

# Coverage-guided, for FUZZ_SECONDS; what reaches anything new is kept in tests/fuzz/corpus.
FUZZ_SECONDS := 600
fuzz: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group fuzz
	@mkdir -p var/fuzz
	$(BIN)/python -m tests.fuzz.codec -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -artifact_prefix=var/fuzz/ \
		tests/fuzz/corpus

setup: $(VENV)/.installed $(VENV)/.built

system-packages:
	@tests/install-system-packages.sh

$(VENV)/bin/uv: | system-packages
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --group dev 'setuptools>=77' -r pyproject.toml
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE_SOURCES) | system-packages
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	@touch $@

victims: setup
	@$(MAKE) --no-print-directory -C tests/victims

clean:
	rm -rf $(VENV) build dist *.egg-info var
