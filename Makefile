# The project's verbs. `make help` lists them; each installs what it needs the first time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help demo test cluster down images fmt lint unit netns e2e soak-control skew deny fuzz-smoke fuzz-keep fuzz-build bench-mesh bench-pair bench-scale bench-choose bench-leases

CACHE := $(or $(AMBIT_CACHE),$(HOME)/.cache/ambit)
# Always the whole workspace: a part of it would resolve other features, and build every dependency again.
CARGO_TEST := cargo test --locked --workspace
# A failure says what it is in its last lines; what called what stands in the code.
export RUST_LIB_BACKTRACE := 0
LAB := cargo run --locked --quiet --package e2e --bin ambit-lab --

integration = $(sort $(basename $(notdir $(wildcard */tests/*.rs))) $(notdir $(patsubst %/main.rs,%,$(wildcard */tests/*/main.rs))))
NETNS_TESTS := $(filter netns_%,$(integration))
E2E_TESTS := $(sort $(shell grep -rl 'needs the cluster' e2e/tests | sed 's,e2e/tests/,,; s,[/.].*,,'))
# The skew test builds another workspace first, and has a verb of its own.
UNIT_TESTS := $(filter-out $(NETNS_TESTS) $(E2E_TESTS) skew,$(integration))

help: ## lists the verbs
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

demo: packages ## sets everything up and shows the mesh at work on a local cluster, which it leaves running
	cargo build --locked --workspace --bins
	cargo run --locked --quiet --package e2e --bin ambit-demo

test: room fmt lint unit netns e2e deny ## what must hold after each change, as CI runs it (not skew, soaks, fuzzing, benches); ends what it starts
	@echo "all of it passed: fmt lint unit netns e2e deny"

cluster: packages ## brings the local cluster up (or finds it) and prints its kubeconfig
	cargo build --locked --workspace --bins
	$(LAB) up

down: ## takes the local cluster down, or what is left of it
	$(LAB) down

images: packages ## builds the programs as images and brings them onto the nodes of a running cluster
	cargo build --locked --workspace --bins
	$(LAB) images

fmt: ## checks the formatting
	cargo fmt --all --check

lint: packages ## clippy over everything, warnings refused
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo metadata --locked --format-version 1 --manifest-path hbone/fuzz/Cargo.toml >/dev/null # its lock is of today

unit: packages ## pure tests, and both ends in one process on loopback
	$(CARGO_TEST) --lib --bins $(addprefix --test ,$(UNIT_TESTS))
	# Those that look at the whole process, or take as long as a limit.
	$(CARGO_TEST) --test hostile_server -- --ignored --test-threads=1
	# That the benches run; what they print in so short a time means nothing.
	BENCH_QUICK=1 $(CARGO_TEST) --bench scale --bench choose

netns: packages ## tests in network namespaces that they make themselves (root)
	$(CARGO_TEST) $(addprefix --test ,$(NETNS_TESTS)) -- --test-threads=2

# The cluster's tests take turns: they share its two nodes, and some of them harm it.
e2e: packages ## the promises to users, on the real local cluster (root); KEEP=1 leaves it running
	cargo build --locked --workspace --bins
	[ -n "$(KEEP)" ] || trap '$(LAB) down' EXIT
	$(CARGO_TEST) $(addprefix --test ,$(E2E_TESTS)) -- --ignored --test-threads=1

MINUTES ?= 3
soak-control: packages ## controllers killed and rolled in turn for MINUTES (3) while all changes, under load: nothing may be lost; KEEP=1
	cargo build --locked --workspace --bins
	[ -n "$(KEEP)" ] || trap '$(LAB) down' EXIT
	cargo run --locked --quiet --package e2e --bin ambit-soak -- --minutes $(MINUTES)

# The last build before discovery knew of positions, and of a type that tells nodes of an uninstall.
PREVIOUS := e5a689c
skew: packages ## programs of the previous build under the new controller, and the reverse: both keep serving (builds that, from git); KEEP=1
	cargo build --locked --workspace --bins
	[ -n "$(KEEP)" ] || trap '$(LAB) down' EXIT
	AMBIT_PREVIOUS=$(PREVIOUS) $(CARGO_TEST) --test skew -- --ignored --test-threads=1

# libFuzzer on stable Rust: coverage by the compiler's own flags, without cargo-fuzz (which wants nightly).
FUZZ_TARGETS := connect_head spiffe_id server_bytes client_bytes
FUZZ_SECONDS ?= 60
FUZZ_ROOM := $(abspath $(or $(CARGO_TARGET_DIR),target))/fuzz
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_MOST_BYTES := 4096

fuzz-smoke: fuzz-build ## hostile bytes into the tunnel, each target for a minute (FUZZ_SECONDS) from the corpus that is kept
	@for target in $(FUZZ_TARGETS); do
		found=$(FUZZ_ROOM)/found/$$target crash=$(FUZZ_ROOM)/crash-$$target kept=hbone/fuzz/corpus/$$target
		mkdir -p $$found; rm -f $$crash
		echo "$$target: $(FUZZ_SECONDS) s, $$(ls $$kept | wc -l) kept inputs"
		dict=hbone/fuzz/dict/$$target.dict; [ -e $$dict ] || dict=hbone/fuzz/dict/frames.dict
		if ! $(FUZZ_ROOM)/$(FUZZ_HOST)/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=$(FUZZ_MOST_BYTES) -timeout=5 \
			-rss_limit_mb=1024 -dict=$$dict -exact_artifact_path=$$crash $$found $$kept >$$found.log 2>&1; then
			grep -vE '^#[0-9]+.*(NEW|REDUCE|pulse)' $$found.log | tail -n 60
			echo "$$target fails; the input is $$crash (base64: $$(base64 -w0 $$crash))"
			echo "again: $(FUZZ_ROOM)/$(FUZZ_HOST)/release/$$target $$crash; kept in $$kept it fails in cargo test -p hbone, until mended"
			exit 1
		fi
		grep -E '^#[0-9]+.*DONE' $$found.log
	done

fuzz-keep: fuzz-build ## adds to the kept corpus what fuzz-smoke found that reaches more
	@for target in $(FUZZ_TARGETS); do
		$(FUZZ_ROOM)/$(FUZZ_HOST)/release/$$target -set_cover_merge=1 -use_counters=0 -max_len=$(FUZZ_MOST_BYTES) hbone/fuzz/corpus/$$target $(FUZZ_ROOM)/found/$$target 2>&1 |
			grep -E 'new files with'
	done

fuzz-build: WANTED += c++:g++
fuzz-build: packages
	@export RUSTFLAGS='$(FUZZ_FLAGS)'
	cargo build --release --manifest-path hbone/fuzz/Cargo.toml --target $(FUZZ_HOST) --target-dir $(FUZZ_ROOM)

# BENCH_QUICK=1 (does it work?), BENCH_ROUNDS=n; AMBIT_PREVIOUS=commit measures that tree's proxies in turns with this one's.
bench-mesh: packages ## what the mesh costs beside plain Kubernetes: requests, connections, bulk on the local cluster (quiet machine, root); KEEP=1
	cargo build --locked --workspace --bins
	[ -n "$(KEEP)" ] || trap '$(LAB) down' EXIT
	cargo run --locked --quiet --package e2e --bin ambit-bench-mesh

# BENCH_ROUNDS=n, BENCH_CC=bbr,reno, BENCH_NET=loopback, BENCH_QUICK=1: see hbone/README.md.
bench-pair: packages ## what the tunnel costs beside the usual design and a plain relay (quiet machine, root)
	cargo bench --locked --workspace --bench pair

# BENCH_QUICK=1, BENCH_ONLY=10000x100: see controller/benches/scale/main.rs.
bench-scale: packages ## what the control plane costs at 10 k, 100 k and 1 M pods and up to 1 000 streams (quiet machine)
	cargo bench --locked --workspace --bench scale

# BENCH_QUICK=1: see mesh/benches/choose.rs.
bench-choose: packages ## what the choice of an endpoint costs among 10 to 10 000 (quiet machine)
	cargo bench --locked --workspace --bench choose

# An optimised build of everything, once.
bench-leases: packages ## what judging open connections again costs a node while the mesh changes (quiet machine)
	cargo test --locked --workspace --release --lib -- --ignored --nocapture what_a_nodes_dispatchers_cost

deny: $(CACHE)/cargo/bin/cargo-deny ## licences, sources and banned or doubled crates
	$< --locked check bans licenses sources

$(CACHE)/cargo/bin/cargo-deny:
	cargo install --locked --root $(CACHE)/cargo cargo-deny@0.20.2

# A full disk shows as whatever was being written when it filled up. Half of it is saved by CARGO_INCREMENTAL=0.
ROOM_GB := 12
room:
	@free=$$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9)
	if [ ! -d "$${CARGO_TARGET_DIR:-target}" ] && [ "$$free" -lt $(ROOM_GB) ]; then
		echo "only $$free GB free under $(CURDIR): building and testing everything takes about $(ROOM_GB); what fails may be the disk"
	fi

.PHONY: packages room
WANTED := cc:gcc make:make ip:iproute2 nft:nftables
# What building and the namespace tests need of the system; ambit-lab sees to what a cluster needs beyond it.
packages:
	@missing=()
	for wanted in $(WANTED); do
		command -v "$${wanted%%:*}" >/dev/null || missing+=("$${wanted##*:}")
	done
	if [ "$${#missing[@]}" -gt 0 ]; then
		echo "installing $${missing[*]}"
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$${missing[@]}"
	fi
