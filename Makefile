SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.9
BIN := .venv/bin
JAX_BIN := .venv-jax/bin
SOURCES := tfrec beam_jobs serving tests benchmarks docs setup.py
JOBS ?= 2

.PHONY: install format lint types imports test conformance ui-test e2e test-slow test-jax bench demo docs check lock clean

install: .venv/.installed

.venv/.installed: requirements.txt setup.py
	$(call environment,.venv,requirements.txt)
	$(editable)
	touch $@ .venv/.installed-demo

.venv/.installed-demo: requirements-demo.txt setup.py # less than half of it: no encoders, clouds, tools of development
	$(call environment,.venv,requirements-demo.txt)
	$(editable)
	touch $@

.venv-jax/.installed: requirements-jax.txt
	$(call environment,.venv-jax,requirements-jax.txt)
	touch $@

# $(1) the virtual environment, $(2) its locked requirements. uv comes from pip and installs in a tenth of pip's time.
define environment
	@$(PYTHON) -c 'import sys; sys.exit("tfrec is locked for Python 3.11; say make PYTHON=/path/to/python3.11" if sys.version_info[:2] != (3, 11) else 0)'
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python --requirement $(2)
endef

define editable
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
endef

format: install
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lint: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/codespell

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports --no-logo

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

conformance: install # SERVER="tensorflow_model_server" or "python -m serving" asks a server of its own process
	PATH="$(CURDIR)/$(BIN):$$PATH" TFREC_SERVER="$(SERVER)" $(BIN)/python -m pytest -m "conformance and not slow" $(if $(SERVER),tests/serving,)

ui-test: install # in the browser of TFREC_BROWSER, of PATH, or of `playwright install chromium`
	$(BIN)/python -m pytest -m browser -rs tests/serving/test_page_in_browser.py

e2e: install # logs -> dataset -> run -> SavedModel -> server, in one file of tests
	$(BIN)/python -m pytest tests/test_end_to_end.py

test-slow: install
	$(BIN)/python -m pytest -m slow

test-jax: .venv-jax/.installed
	KERAS_BACKEND=jax $(JAX_BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "jax and not slow and not benchmark"

bench: install # those that need no published data; the others say in their first lines how they are run
	$(BIN)/python -m benchmarks.preprocess --events 2000000
	$(BIN)/python benchmarks/sparse_attention.py
	$(BIN)/python -m benchmarks.serving_overhead
	$(BIN)/python -m benchmarks.serving_throughput
	$(BIN)/python -m benchmarks.serving_swap

demo: .venv/.installed-demo
	$(BIN)/tfrec demo --out demo

docs: install
	$(BIN)/python docs/write_configuration.py

check: lint types imports test test-jax

lock: install
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url requirements.in --output-file requirements.txt
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --constraints requirements.txt requirements-jax.in --output-file requirements-jax.txt
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --constraints requirements.txt --extra beam --extra serving --extra retrieval setup.py --output-file requirements-demo.txt

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
