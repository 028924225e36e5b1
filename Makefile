# What one does with this project. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
CARGO ?= cargo
# The long form takes more orders of the lock-free parts' operations and of a sequence's events, and more
# schedules of faults, has more clients with shared memory killed and others make noise in it, and fuzzes for a
# moment only.
LONG := $(filter test-long,$(MAKECMDGOALS))
FUZZ_SECONDS ?= $(if $(LONG),20,60)
LOOM_MAX_PREEMPTIONS ?= $(if $(LONG),3,2)
NEREID_TEST_KILLS ?= $(if $(LONG),1000,12)
NEREID_TEST_RING_NOISE ?= $(if $(LONG),20000,40)
NEREID_FAULTS ?= $(if $(LONG),300,3)
NEREID_FAULT_SCHEDULES ?= $(if $(LONG),10000,400)
NEREID_DELAY_SEEDS ?= $(if $(LONG),40,10)
NEREID_SEQUENCE_DEPTH ?= $(if $(LONG),9,6)
# What `make tools` has installed goes before what the machine has.
PATH := $(CURDIR)/build/tools/bin:$(PATH)
export PYTHON FUZZ_SECONDS LOOM_MAX_PREEMPTIONS MAKE PATH
export NEREID_DELAY_SEEDS NEREID_FAULTS NEREID_FAULT_SCHEDULES NEREID_SEQUENCE_DEPTH NEREID_TEST_KILLS
export NEREID_TEST_RING_NOISE

# Back ends for tests lie in the build folder, so that a test changes nothing in the user's home.
TEST_BACKENDS := $(CURDIR)/build/backends
RELEASE := $(CURDIR)/target/release/nereid
DEBUG := $(CURDIR)/target/debug/nereid
TEST_PYTHON := $(CURDIR)/build/venv/bin/python
EXAMPLES_PYTHON := $(CURDIR)/build/venv-examples/bin/python
PYTEST := -m pytest --quiet -rs -p no:cacheprovider
# A server that never answers fails its stage instead of holding it up.
LIMIT := timeout --kill-after=10 $(if $(LONG),5400,1800)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' Makefile

# --- Use

.PHONY: serve
serve: release examples examples-python ## Build the server and serve the example models on 127.0.0.1
	@$(RELEASE) backend install onnxruntime
	@cat scripts/first_requests.txt
	@exec $(RELEASE) --model-repository=build/examples/models --model-repository=build/examples/python \
		--backend-config=python,interpreter=$(EXAMPLES_PYTHON) --http-address=127.0.0.1 \
		--grpc-address=127.0.0.1 --metrics-address=127.0.0.1

.PHONY: release
release: ## Build the server as it is used
	@scripts/require.sh rust cc
	$(CARGO) build --release

.PHONY: backend-pytorch
backend-pytorch: release ## Fetch libtorch, build the library that links it, and install both where the server looks
	@scripts/build_pytorch.sh $(RELEASE)

.PHONY: examples
examples: ## Fetch the example models into build/examples
	@scripts/require.sh python
	@$(PYTHON) examples/fetch_models.py

# --- Tests

STAGES := cuda check test-unit test-loom test-clients test-examples test-differential

.PHONY: test
test: ## Everything that a change must pass, in order, up to the first failure
	@scripts/require.sh rust cc cxx python fmt clippy
	@scripts/stages.sh $(STAGES)

.PHONY: test-long
test-long: ## The same, the tools that `make test` can do without, more of loom, the book, a short fuzz; needs nightly
	@scripts/require.sh rust cc cxx python fmt clippy nightly
	@scripts/stages.sh tools $(STAGES) advisories book fuzz

.PHONY: cuda
cuda: ## Fetch a CUDA compiler into build/cuda, so that the build embeds the GPU kernels
	@scripts/setup_cuda.sh --optional

.PHONY: tools
tools: ## Install cargo-deny, cargo-fuzz, mdbook and azurite, in pinned versions, into build/tools
	@scripts/require.sh rust cc
	@scripts/setup_tools.sh

.PHONY: check
check: ## Formatting, lints, house style, licences
	@scripts/require.sh rust cc fmt clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings
	$(CARGO) test --quiet --locked --test tidy --test compatibility --test documents
	@scripts/check_pytorch.sh
	@$(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check licenses bans sources; \
	else \
		echo "skipped: cargo deny (licences, bans, sources), because it is missing (make tools installs it)"; \
	fi

.PHONY: advisories
advisories: ## Known faults of the crates we depend on, where their database can be reached; needs cargo-deny
	@scripts/require.sh rust cargo-deny
	@if $(CARGO) deny fetch db >/dev/null 2>&1; then \
		$(CARGO) deny --locked check advisories; \
	else \
		echo "skipped: advisories, because their database cannot be reached (github.com/RustSec/advisory-db)"; \
	fi

.PHONY: test-unit
test-unit: test-backends test-pytorch ## Tests in Rust, with a real ONNX Runtime and libtorch
	@scripts/check_pytorch.sh # again, for the headers may have come just now
	NEREID_BACKEND_DIR=$(TEST_BACKENDS) NEREID_REQUIRE_BACKENDS=1 $(CARGO) test --quiet --locked

.PHONY: test-loom
test-loom: ## The lock-free parts, under every order of their operations with LOOM_MAX_PREEMPTIONS (2)
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test --quiet --locked --package nereid-loom

.PHONY: test-clients
test-clients: debug test-backends test-pytorch test-python test-interpreters test-peer ## Real Triton clients against the server, on both event loops
	@if [ ! -d tests/clients ]; then echo "skipped: tests/clients, because there are none yet"; exit 0; fi; \
	for driver in io_uring epoll; do \
		echo "--- $$driver"; \
		NEREID_IO_DRIVER=$$driver NEREID=$(DEBUG) NEREID_BACKEND_DIR=$(TEST_BACKENDS) \
			$(LIMIT) $(TEST_PYTHON) $(PYTEST) tests/clients; \
	done

.PHONY: test-examples
test-examples: debug test-backends examples examples-python ## The example models and programs, on both event loops
	@for driver in io_uring epoll; do \
		echo "--- $$driver"; \
		NEREID_ARGUMENTS=--io-driver=$$driver NEREID_BINARY=$(DEBUG) NEREID_BACKEND_DIR=$(TEST_BACKENDS) \
			$(LIMIT) $(EXAMPLES_PYTHON) $(PYTEST) tests/examples; \
	done

.PHONY: test-differential
test-differential: debug test-python test-peer ## Every answer beside the recorded answer of the real Triton
	NEREID=$(DEBUG) $(LIMIT) $(TEST_PYTHON) $(PYTEST) tests/differential

.PHONY: fuzz
fuzz: ## Fuzz each parser for FUZZ_SECONDS (60); needs nightly and cargo-fuzz
	@scripts/require.sh rust cc nightly cargo-fuzz
	@scripts/fuzz.sh

# --- Speed

.PHONY: bench-python-stub
bench-python-stub: python-native test-python ## What a model's process costs for each request, without a server
	$(TEST_PYTHON) benches/python_stub.py

.PHONY: bench
bench: test-backends ## Benches of single parts (criterion)
	NEREID_BACKEND_DIR=$(TEST_BACKENDS) $(CARGO) bench --locked

.PHONY: bench-schedulers
bench-schedulers: ## Sequences, ensembles, and a delay that is chosen: the two benches that follow, then the batchers alone
	@missed=0; \
	$(MAKE) bench-sequences || missed=1; \
	$(MAKE) bench-ensembles || missed=1; \
	$(CARGO) bench --locked --bench schedulers || missed=1; \
	exit $$missed

.PHONY: bench-sequences
bench-sequences: release test-python ## What a request costs while thousands of sequences live; BENCH_FLAGS are run.py's
	$(TEST_PYTHON) benches/sequences/run.py $(BENCH_FLAGS)

.PHONY: bench-bare
bench-bare: release test-backends test-pytorch examples test-python ## A served model beside the same model run bare; BENCH_FLAGS are run.py's
	NEREID_BACKEND_DIR=$(TEST_BACKENDS) $(TEST_PYTHON) benches/bare/run.py $(BENCH_FLAGS)

.PHONY: bench-ensembles
bench-ensembles: release test-python ## An ensemble of two identities beside one; BENCH_FLAGS are run.py's
	$(TEST_PYTHON) benches/ensembles/run.py $(BENCH_FLAGS)

.PHONY: bench-scaling
bench-scaling: release test-python ## What more reactors bring; a client that never reads; BENCH_FLAGS are run.py's
	$(TEST_PYTHON) benches/scaling/run.py $(BENCH_FLAGS)

.PHONY: bench-repository
bench-repository: release test-backends test-python test-peer ## A thousand models; reloads under load; BENCH_FLAGS are run.py's
	NEREID_BACKEND_DIR=$(TEST_BACKENDS) $(TEST_PYTHON) benches/repository/run.py $(BENCH_FLAGS)

.PHONY: bench-ring
bench-ring: ## A request through the ring beside bare doorbells and memcpy; BENCH_SECONDS (2) for each line
	$(CARGO) bench --locked --bench ring

.PHONY: bench-gpu
bench-gpu: release test-python ## How well copies overlap with execution, on GPUs if there are any, on the host and in virtual time; BENCH_FLAGS are run.py's
	$(TEST_PYTHON) benches/gpu/run.py $(BENCH_FLAGS)

.PHONY: bench-peer
bench-peer: release test-python ## Side by side with the real Triton; BENCH_FLAGS are run.py's
	scripts/setup_peer.sh
	$(TEST_PYTHON) benches/peer/run.py $(BENCH_FLAGS)

# --- Papers

.PHONY: book
book: ## Build the book in docs/ (mdbook)
	@scripts/require.sh mdbook
	mdbook build docs

.PHONY: clean
clean: ## Remove all that was built or fetched
	rm -rf target build fuzz/target

# --- What others need

.PHONY: debug
debug:
	@$(CARGO) build --quiet --locked
	@$(CARGO) build --quiet --locked --package nereid-ring-client --examples

.PHONY: test-backends
test-backends: debug
	@$(DEBUG) backend install onnxruntime --directory $(TEST_BACKENDS)

# libtorch is large and its library takes minutes to compile, once; where they cannot be had, the tests
# that need them skip by name.
.PHONY: test-pytorch
test-pytorch: debug
	@scripts/require.sh rust cc
	@scripts/build_pytorch.sh $(DEBUG) $(TEST_BACKENDS) --optional

.PHONY: test-python
test-python:
	@scripts/require.sh python
	@scripts/setup_python.sh

# The native half of Python models' processes, where an interpreter finds it that takes python/nereid_stub as it
# lies there. The server carries one along and does not look at this.
.PHONY: python-native
python-native:
	@scripts/require.sh rust cc
	@$(CARGO) build --quiet --locked --package nereid-python --profile python
	@install target/python/libnereid_python.so python/nereid_stub/native.abi3.so

# Other versions of CPython, for Python models; where there are none, their test skips by name.
.PHONY: test-interpreters
test-interpreters:
	@scripts/setup_interpreters.sh

.PHONY: examples-python
examples-python:
	@scripts/require.sh python
	@scripts/setup_python.sh build/venv-examples requirements/examples.txt

# The real Triton and perf_analyzer; where they cannot be had, the tests that need them skip by name.
.PHONY: test-peer
test-peer:
	@scripts/require.sh cc python
	@scripts/setup_peer.sh --optional

