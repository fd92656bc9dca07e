# The recipes that CI runs. `make test` on a fresh Debian with Rust is all there is to set up.
#
#   make build   every program and test, debug          make demo    a mesh of three nodes in a minute
#   make test    check, unit tests and the lab (root)   make check   fmt, clippy, doc, deny, tidy
#   make bench   tables of docs/benchmarks.md (root)    make soak    ten minutes beside a stock WireGuard (root)
#   make fuzz    ten million hostile cases for each target (CASES=, SEED=, TARGETS=)
#   make count   instructions per packet, held against benches/baseline.txt, which make count-renew writes anew
#   make soak-loss   ten million packets over a link that loses, beside the newest WireGuard (root)
#   make faults  outages, loss, strangers, sleep: each with its bar, written to docs/benchmarks.md (root, 40 minutes)
#   make deb     Debian packages                        make deb-check   install, start and purge them (root)
#   make systemd-check   the packages under a real systemd, with each resolver that Debian has (root)
#   make clean   what the recipes made, .tools included

export PATH := $(CURDIR)/.tools/venv/bin:$(CURDIR)/.tools/bin:$(PATH):/usr/sbin:/sbin
export CARGO_TERM_COLOR ?= never
# Tests return their errors; a backtrace through the test harness only hides the words.
export RUST_LIB_BACKTRACE ?= 0

# One set of flags everywhere: with --all-targets, features are the same for programs and tests, so nothing is built twice.
ALL := --workspace --all-targets --locked

.PHONY: build test unit lab check fmt clippy doc deny tidy count count-renew demo bench soak soak-loss deb deb-check systemd-check tools
.PHONY: fuzz faults bench-tools clean

build:
	cargo build $(ALL)

test: check build count
	cargo nextest run --workspace --locked -E 'not binary(lab) and not binary(tidy)'
	cargo nextest run --workspace --locked --profile lab -E 'binary(lab)'

unit: tools build
	cargo nextest run --workspace --locked -E 'not binary(lab) and not binary(tidy)'

# make lab TESTS=join    runs the lab tests with `join` in their names.
lab: tools build
	cargo nextest run --workspace --locked --profile lab -E 'binary(lab)' $(TESTS)

check: fmt clippy doc deny tidy

fmt:
	cargo fmt --all --check

clippy: tools
	cargo clippy $(ALL) --quiet -- -D warnings

doc: tools
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

# Advisories need a database from the net, so they are not part of this.
deny: tools
	@cargo fetch --locked --quiet
	cargo deny --offline --all-features --log-level error check bans licenses sources

tidy: build tools
	cargo nextest run --workspace --locked -E 'binary(tidy)'

# As it is shipped: optimised, and so with nothing else in the way of a packet.
count: tools
	cargo build --release --locked --quiet -p benches
	target/release/benches check

count-renew: tools
	cargo build --release --locked --quiet -p benches
	target/release/benches renew

demo:
	@e2e/tools.sh demo
	@$(MAKE) --no-print-directory build
	target/debug/demo

bench: bench-tools
	cargo build --workspace --release --locked
	target/release/bench $(PARTS)

soak: tools build
	target/debug/soak

# The development profile: these crates are optimized there too, and overflow is checked.
fuzz:
	cargo build --locked -p fuzz
	target/debug/fuzz $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED)) $(TARGETS)

soak-loss: bench-tools
	cargo build --workspace --release --locked
	target/release/bench loss

faults: tools
	cargo build --workspace --release --locked
	target/release/bench faults weather strangers idle

deb:
	cargo build --release --locked -p meshd -p meshctl -p coordinator
	packaging/assets.sh target/release packaging/out
	command -v cargo-deb >/dev/null || cargo install --quiet --locked --root .tools --version '^3' cargo-deb
	cargo deb --no-build --strip -p meshd
	cargo deb --no-build --strip -p coordinator

deb-check: deb
	packaging/check.sh target/debian/*.deb

# make systemd-check SCENARIOS=resolved    one resolver alone
systemd-check: deb
	@e2e/tools.sh systemd
	packaging/systemd-check.sh $(SCENARIOS)

tools:
	@e2e/tools.sh

bench-tools:
	@e2e/tools.sh bench

clean:
	cargo clean
	rm -rf .tools e2e/out
