# The two commands that matter: `make run` and `make test`.
CARGO ?= cargo
VENV := .venv
RABBITMQ := /usr/lib/rabbitmq/bin/rabbitmq-server
DOVECOT := /usr/lib/dovecot/pop3-login
POLICY := /usr/sbin/policy-rc.d

WRK := /usr/bin/wrk
HEY := /usr/bin/hey
NGINX := /usr/sbin/nginx
HAPROXY := /usr/sbin/haproxy
NPM := /usr/bin/npm
BENCH ?=
ROUNDS ?= 5

.PHONY: run build test check fmt tools docs bench bench-smoke bench-peers bench-build fuzz clean

## Build the release binary and run the example installation (this folder).
run: build
	@echo
	@echo "Try it from another terminal:"
	@echo "  curl -s -H 'Content-Type: text/xml; charset=utf-8' --data-binary @tests/samples/order.xml http://127.0.0.1:$${HTTP_PORT:-8080}/orders"
	@echo "  cp tests/samples/invoice.xml inbox/invoices/"
	@echo "  target/release/xbus queues"
	@echo "  target/release/xbus messages"
	@echo
	target/release/xbus run .

build:
	$(CARGO) build --release --locked

## What the tests need beside Rust: Debian's and PyPI's packages.
tools: $(VENV)/.ready $(RABBITMQ) $(DOVECOT) $(WRK) $(HEY)

$(VENV)/.ready: tests/requirements.txt
	command -v python3 >/dev/null && python3 -m venv --help >/dev/null 2>&1 || (apt-get update -qq && apt-get install -y -qq python3 python3-venv)
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

# The tests start servers of their own from these. That no service is started, and one that runs is
# left alone, says policy-rc.d, which is put there for the installation unless the machine has its own.
$(RABBITMQ): PACKAGES := rabbitmq-server
$(DOVECOT): PACKAGES := dovecot-imapd dovecot-pop3d
$(WRK): PACKAGES := wrk
$(HEY): PACKAGES := hey
$(NGINX): PACKAGES := nginx-light
$(HAPROXY): PACKAGES := haproxy
$(NPM): PACKAGES := npm
$(RABBITMQ) $(DOVECOT) $(WRK) $(HEY) $(NGINX) $(HAPROXY) $(NPM):
	apt-get update -qq
	set -e; \
	if [ ! -e $(POLICY) ]; then \
	    trap 'rm -f $(POLICY)' EXIT; trap 'exit 1' HUP INT TERM; \
	    printf '#!/bin/sh\nexit 101\n' >$(POLICY); chmod +x $(POLICY); \
	fi; \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES)

## Every test, with real servers on free ports; nothing is left running.
test: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --locked --quiet
	$(MAKE) bench-smoke BUILD="--workspace --bins --tests"

## The quick ones, before a commit.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --lib --bins --locked --quiet

## Strange input at every parser, FUZZ_SECONDS for each (TARGETS: which). Needs a C++ compiler. What is found lies in
## tests/fuzz/artifacts: mend it, and put the input into tests/fuzz/corpus.
FUZZ := --fuzz-dir tests/fuzz --sanitizer none
FUZZ_SECONDS ?= 20
TARGETS ?= $(notdir $(wildcard tests/fuzz/corpus/*))
fuzz:
	$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	$(CARGO) fuzz build $(FUZZ)
	set -e; for target in $(TARGETS); do \
	    mkdir -p tests/fuzz/target/corpus/$$target; \
	    $(CARGO) fuzz run $(FUZZ) $$target tests/fuzz/target/corpus/$$target tests/fuzz/corpus/$$target \
	        -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -max_len=8192 -verbosity=0 -print_final_stats=1; \
	done

## The bus beside its limits, on a quiet machine: bench/README.md. BENCH=5 runs one of the eight, BENCH="1 3" two of them; also
## growth, memory; amqp (with RabbitMQ); stores and runtime, the programs behind docs/decisions.
bench: bench-build
ifeq ($(BENCH),stores)
	cd bench/stores && $(CARGO) run --release --locked
else ifeq ($(BENCH),runtime)
	cd bench/runtime && $(CARGO) build --release --locked && python3 run.py
else ifeq ($(BENCH),amqp)
	$(MAKE) $(RABBITMQ)
	cd bench/amqp && $(CARGO) build --release --locked && python3 run.py
else
	python3 bench/run.py $(BENCH) --rounds $(ROUNDS)
endif

bench-build: $(WRK) $(HEY)
	$(CARGO) build --release --locked -p xbus -p xbus-limits

## Each of the eight for a second: that it works, and that nothing is lost or doubled. After the tests it is built as they
## were (BUILD), so that nothing is compiled twice.
bench-smoke: BUILD ?= -p xbus -p xbus-limits
bench-smoke: $(WRK) $(HEY)
	$(CARGO) build --locked --quiet $(BUILD)
	python3 bench/run.py --smoke

## nginx, HAProxy and Node-RED with the same load, where they can do the same.
bench-peers: bench-build $(NGINX) $(HAPROXY) $(NPM)
	python3 bench/peers/run.py --rounds $(ROUNDS)

## The reference page, from the tables that the bus itself reads.
docs:
	$(CARGO) run --quiet --locked -- schema reference > docs/reference.md

clean:
	$(CARGO) clean
	rm -rf $(VENV) data inbox outbox
