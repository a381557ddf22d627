# `make demo` runs the main job, `make test` passes the tests. Both set up what they need, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find velo-*/src python -name '*.rs' -o -name '*.py' -o -name '*.pyi') \
           $(wildcard velo-*/Cargo.toml) Cargo.toml Cargo.lock pyproject.toml

.PHONY: demo test test-rust test-python test-loom test-long fuzz lint bench docs clean

# Installs velo as a user would have it, in a virtual environment of its own.
$(VENV)/.ready: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test,examples,lint,docs]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python examples/data.py
	mkdir -p examples/out
	$(BIN)/velo run examples/flights.py:turnarounds --input examples/data/flights.csv \
		--key tailnum --mode process --output examples/out/flights.ndjson
	$(BIN)/python examples/flights.py examples/out/flights.ndjson

test: test-rust test-python

# The client for Rust is tried with the Python that is set up here.
test-rust: $(VENV)/.ready
	cargo test --quiet --workspace --all-features

# Most tests wait for something: two processes take half the time of one (`PYTEST_ARGS=`).
PYTEST_ARGS ?= -n 2 --dist loadfile
test-python: $(VENV)/.ready
	$(BIN)/python -m pytest --quiet $(PYTEST_ARGS)

# Everything at its full length, and the Rust tests of shared memory and of the pool under
# AddressSanitizer, whose runtime comes with the stable toolchain.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
test-long: $(VENV)/.ready
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
		cargo test --quiet --target $(HOST) -p velo-shm -p velo-supervisor --all-features --lib --tests
	$(BIN)/python -m pytest --quiet --long
	$(MAKE) fuzz FUZZ_SECONDS=1800

# Every interleaving of the ring's and the doorbell's atomics, as far as the models reach.
test-loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom \
		cargo test --release --quiet -p velo-shm --test loom

# What reads another process's bytes, under AddressSanitizer: `make fuzz FUZZ_SECONDS=1800`,
# `make fuzz FUZZ_TARGETS="ring link"`. Inputs that reach something new are kept in FUZZ_CORPUS.
FUZZ_SECONDS ?= 20
FUZZ_TARGETS ?=
FUZZ_CORPUS ?=
fuzz: $(VENV)/.ready
	$(BIN)/python fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS) \
		$(if $(FUZZ_CORPUS),--corpus $(FUZZ_CORPUS))

lint: $(VENV)/.ready
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --all --check
	cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy python/velo examples benches/run.py

# Beside every peer that is installed: `.venv/bin/pip install '.[bench]'` brings those that pip can.
# How each figure is made, and the other benchmarks: benches/README.md.
bench: $(VENV)/.ready
	$(BIN)/velo bench

# The site, into site/. A broken link is an error; nothing is fetched, here or by who reads it.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) target fuzz/target fuzz/artifacts site examples/data examples/out
