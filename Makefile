# The project's verbs. `make help` lists them; each installs what it needs the first time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help demo test cluster down images fmt lint unit netns e2e deny

CACHE := $(or $(AMBIT_CACHE),$(HOME)/.cache/ambit)
# Always the whole workspace: a part of it would resolve other features, and build every dependency again.
CARGO_TEST := cargo test --locked --workspace
LAB := cargo run --locked --quiet --package e2e --bin ambit-lab --

integration = $(sort $(basename $(notdir $(wildcard */tests/*.rs))))
NETNS_TESTS := $(filter netns_%,$(integration))
E2E_TESTS := $(sort $(shell grep -rl 'needs the cluster' e2e/tests | sed 's,e2e/tests/,,; s,[/.].*,,'))
UNIT_TESTS := $(filter-out $(NETNS_TESTS) $(E2E_TESTS),$(integration))

help: ## lists the verbs
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## /\1\t/' | expand -t 10

demo: packages ## sets everything up and shows the mesh at work on a local cluster, which it leaves running
	cargo build --locked --workspace --bins
	cargo run --locked --quiet --package e2e --bin ambit-demo

test: fmt lint unit netns e2e deny ## every test and check there is; sets up what it needs, ends what it starts
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

unit: packages ## pure tests, and both ends in one process on loopback
	$(CARGO_TEST) --lib --bins $(addprefix --test ,$(UNIT_TESTS))

netns: packages ## tests in network namespaces that they make themselves (root)
	$(CARGO_TEST) $(addprefix --test ,$(NETNS_TESTS)) -- --test-threads=2

# The cluster's tests take turns: they share its two nodes, and some of them harm it.
e2e: packages ## the promises to users, on the real local cluster (root); KEEP=1 leaves it running
	cargo build --locked --workspace --bins
	[ -n "$(KEEP)" ] || trap '$(LAB) down' EXIT
	$(CARGO_TEST) $(addprefix --test ,$(E2E_TESTS)) -- --ignored --test-threads=1

deny: $(CACHE)/cargo/bin/cargo-deny ## licences, sources and banned or doubled crates
	$< --locked check bans licenses sources

$(CACHE)/cargo/bin/cargo-deny:
	cargo install --locked --root $(CACHE)/cargo cargo-deny@0.20.2

.PHONY: packages
# What building and the namespace tests need of the system; ambit-lab sees to what a cluster needs beyond it.
packages:
	@missing=()
	for wanted in cc:gcc make:make ip:iproute2 nft:nftables; do
		command -v "$${wanted%%:*}" >/dev/null || missing+=("$${wanted##*:}")
	done
	if [ "$${#missing[@]}" -gt 0 ]; then
		echo "installing $${missing[*]}"
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$${missing[@]}"
	fi
