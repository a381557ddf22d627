# `make demo` runs the main example, `make test` runs the tests. Each installs what it needs, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find velo-*/src python -name '*.rs' -o -name '*.py' -o -name '*.pyi') \
           $(wildcard velo-*/Cargo.toml) Cargo.toml Cargo.lock pyproject.toml

.PHONY: demo test test-fast test-busy test-rust test-python test-inline test-ray test-pythons test-loom test-long fuzz lint bench \
        docs wheels clean

# Installs velo as for a user, in a virtual environment of its own.
$(VENV)/.installed: $(SOURCES)
	@echo 'building velo, which takes some minutes the first time'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[examples]'
	touch $@

# Adds what the tests need to the velo that is installed: 2 GB that the demo does without. Without the version, pip would take
# velo-stream 0.x from PyPI instead where it cannot install a requirement of the tests.
$(VENV)/.ready: $(VENV)/.installed
	@echo 'installing what the tests need'
	version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("velo-stream"))') && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check "velo-stream[test,examples,lint,docs]==$$version"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/data.py
	mkdir -p examples/out
	$(BIN)/velo run examples/flights.py:turnarounds --input examples/data/flights.csv \
		--key tailnum --mode process --output examples/out/flights.ndjson
	$(BIN)/python examples/flights.py examples/out/flights.ndjson

test: test-rust test-python

# What one runs while working: no programs around velo, no storms, nothing that takes seconds.
test-fast: $(VENV)/.ready
	cargo test --quiet --workspace --all-features --lib
	$(BIN)/python -m pytest --quiet --fast $(PYTEST_ARGS)

# No test judges speed or scheduling: all of them pass, again and again, beside busy neighbours.
test-busy: $(VENV)/.ready
	$(BIN)/python tests/busy.py --times 5 --burners 2 -- $(MAKE) test

# The tests of the client for Rust use the Python of this virtual environment.
test-rust: $(VENV)/.ready
	cargo test --quiet --workspace --all-features

# Most tests wait for programs that they start: four processes keep two cores busy (`PYTEST_ARGS=`).
PYTEST_ARGS ?= -n 4 --dist loadfile
test-python: $(VENV)/.ready
	$(BIN)/python -m pytest --quiet $(PYTEST_ARGS)

# The fast tests with each other CPython of this machine that velo supports: one build for each.
test-pythons: $(VENV)/.ready
	$(BIN)/python tools/pythons.py test -- --fast $(PYTEST_ARGS)

# All tests at their full length, those of usual length with each other CPython, and the Rust tests of shared memory and of the pool under
# AddressSanitizer, whose runtime comes with the stable toolchain.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
test-long: $(VENV)/.ready
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
		cargo test --quiet --target $(HOST) -p velo-shm -p velo-supervisor --all-features --lib --tests
	$(BIN)/python -m pytest --quiet --long
	$(BIN)/python tools/pythons.py test -- $(PYTEST_ARGS)
	$(MAKE) fuzz FUZZ_SECONDS=1800

# What runs on the nodes of a Ray cluster, which this machine has one of at a time.
test-ray: $(VENV)/.ready
	$(BIN)/python -m pytest --quiet --ray tests/python

# Inline mode alone, as it is built for systems without process mode. The extension is in a folder of its
# own, with a copy of the Python files that comes before what is installed. Its build shares the crates
# that `make test-rust` has built.
INLINE := target/inline
test-inline: $(VENV)/.ready
	PYO3_BUILD_EXTENSION_MODULE=1 PYO3_PYTHON=$(abspath $(BIN)/python) \
		cargo build --quiet -p velo-py --no-default-features --target-dir target
	rm -rf $(INLINE)/python
	mkdir -p $(INLINE)/python
	cp -r python/velo $(INLINE)/python
	rm -f $(INLINE)/python/velo/_core.*.so
	cp target/debug/lib_core.so $(INLINE)/python/velo/_core.so
	PYTHONPATH=$(abspath $(INLINE)/python) $(BIN)/python -m pytest --quiet --fast --inline \
		$(PYTEST_ARGS) tests/python

# Every interleaving of the atomics of ring and doorbell, within the limits of the models.
test-loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom \
		cargo test --release --quiet -p velo-shm --test loom

# The readers of another process's bytes, under AddressSanitizer: `make fuzz FUZZ_SECONDS=1800`,
# `make fuzz FUZZ_TARGETS="ring link"`. FUZZ_CORPUS keeps the inputs that reach new code.
FUZZ_SECONDS ?= 20
FUZZ_TARGETS ?=
FUZZ_CORPUS ?=
fuzz: $(VENV)/.ready
	$(BIN)/python fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS) \
		$(if $(FUZZ_CORPUS),--corpus $(FUZZ_CORPUS))

ACTIONLINT := go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
lint: $(VENV)/.ready
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --all --check
	cargo fmt --manifest-path benches/codec/Cargo.toml --check
	cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tools/layers.py
	$(BIN)/mypy python/velo examples
	$(BIN)/mypy benches/run.py
	PYTHONPATH=python $(BIN)/lint-imports --no-cache
	if command -v go > /dev/null; then $(ACTIONLINT); else echo 'no go: workflows are not linted'; fi

# velo, its floors and the installed peers: `.venv/bin/pip install '.[bench]'` installs those on PyPI.
# benches/README.md describes how each figure is made, and the other benchmarks.
bench: $(VENV)/.ready
	$(BIN)/velo bench

# A wheel for each CPython of this machine, into dist/, checked and tried. `make wheels
# WHEELS_ARGS='--targets aarch64-unknown-linux-gnu'` builds them for another target, `--sdist` the sources.
# The environment has the extra `wheels` without velo itself, which would be one more build.
WHEELS_ARGS ?=
WHEELS := target/wheels-env
wheels:
	test -x $(WHEELS)/bin/python || $(PYTHON) -m venv $(WHEELS)
	$(WHEELS)/bin/python -m pip install --quiet --disable-pip-version-check $$($(PYTHON) tools/wheels.py --needs)
	$(WHEELS)/bin/python tools/wheels.py $(WHEELS_ARGS)

# The site, into site/. A broken link is an error; neither the build nor the pages fetch anything.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) dist target fuzz/target fuzz/artifacts site examples/data examples/out
