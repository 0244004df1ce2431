# `make run` and `make test` each do all the set-up on a bare Debian 12+ or Ubuntu 24.04.

# The distribution's own Python: python3-venv and python3-dev belong to it.
PYTHON ?= /usr/bin/python3

PACKAGES := clang llvm libbpf-dev libelf-dev zlib1g-dev libsystemd-dev pkg-config gcc libc6-dev \
	python3-venv python3-dev iproute2 procps openssl

# What only `make test-kernels` needs. virtiofsd is part of qemu-system-common on some releases.
GUEST_PACKAGES := qemu-system-x86 qemu-system-common busybox-static cpio
KERNELS ?=
TESTS ?=

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# Root leaves no byte code behind in the checkout of somebody else.
AS_ROOT := $(if $(SUDO),sudo -E env PYTHONDONTWRITEBYTECODE=1)
PIP_INSTALL := .venv/bin/pip install --quiet --use-pep517
BUILD := pyproject.toml bpfkeeperd/__init__.py $(wildcard bpfkeeperd/_build/*.py bpfkeeperd/_build/*.[ch])
BUILT := .venv build dist *.egg-info bpfkeeperd/bpf/*.bpf.o bpfkeeperd/_libbpf*.so bpfkeeperd/_libbpf.[co] \
	.hypothesis .fuzz-*.hex .mypy_cache .pytest_cache .ruff_cache .guests .tools

# What `make fuzz` runs, and how long.
FUZZ_TARGETS := btf elf
FUZZ_SECONDS ?= 600

SOAK_RELOADS ?= 10000

.PHONY: help setup run demo-clean test test-kernels guest-packages lint fuzz soak bench clean packages objects
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: .venv/test.stamp objects ## install everything that the targets below need; each does so itself

run: .venv/run.stamp objects ## run the daemon on the demo manifest, in the foreground
	@$(AS_ROOT) config/demo/run

demo-clean: ## take down what the demo left attached and pinned
	@$(AS_ROOT) config/demo/clean

test: lint ## every check and test; kernel tests need root
	$(AS_ROOT) .venv/bin/python -m pytest -p no:cacheprovider

test-kernels: setup guest-packages ## tests on other kernels, in qemu: KERNELS="6.1 6.12 6.12+lockdown" TESTS=FILES
	@$(AS_ROOT) .venv/bin/python -m tests.guests $(if $(KERNELS),--kernels "$(KERNELS)") $(TESTS)

lint: setup ## formatting, lint and types
	.venv/bin/ruff check --quiet
	.venv/bin/ruff format --check --quiet
	.venv/bin/mypy --no-error-summary

# All at once: each is one process.
fuzz: setup ## fuzz the readers of BTF and of objects, FUZZ_SECONDS (600) each
	@for target in $(FUZZ_TARGETS); do \
		$(AS_ROOT) .venv/bin/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS) \
			--last .fuzz-$$target.hex & processes="$$processes $$!"; \
	done; \
	for process in $$processes; do wait $$process || wrong=1; done; \
	if [ "$$wrong" ]; then echo "the input at work is in .fuzz-TARGET.hex"; exit 1; fi; \
	rm -f $(FUZZ_TARGETS:%=.fuzz-%.hex)

# As the short run of `make test`, but longer.
soak: setup ## SOAK_RELOADS (10,000) reloads beside 550 bad clients of the metrics: nothing may grow
	$(AS_ROOT) env BPFKEEPERD_SOAK_RELOADS=$(SOAK_RELOADS) .venv/bin/python -m pytest \
		-p no:cacheprovider -q -s tests/system/test_soak.py

bench: setup ## measure reloads
	$(AS_ROOT) .venv/bin/python -m tests.bench

clean: ## remove all that was built, and the environment
	@rm -rf $(BUILT) 2>/dev/null || $(SUDO) rm -rf $(BUILT)
	@find bpfkeeperd tests -name __pycache__ -prune -exec rm -rf {} +

# Asks dpkg first: on a machine that has everything this is quick and needs no root. bpftool, which
# only tests use as they do tmux, and virtiofsd are no packages of their own on some releases: such a
# program is installed where there is a package of its name.
packages: WANTED := $(PACKAGES)
packages: OPTIONAL := bpftool tmux
guest-packages: WANTED := $(GUEST_PACKAGES)
guest-packages: OPTIONAL := virtiofsd
packages guest-packages:
	@command -v dpkg-query >/dev/null || { \
		echo "not Debian or Ubuntu: install the equivalents of: $(WANTED)"; exit 0; }; \
	installed=$$(dpkg-query -W -f='$${Package} $${db:Status-Status}\n' $(WANTED) 2>/dev/null | \
		sed -n 's/ installed$$//p'); \
	missing=; \
	for package in $(WANTED); do \
		echo "$$installed" | grep -qx -e "$$package" || missing="$$missing $$package"; \
	done; \
	if [ "$$missing" ]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get update -qq || echo "cannot update the package lists: using those at hand"; \
	fi; \
	for program in $(OPTIONAL); do \
		if ! PATH="$$PATH:/usr/sbin:/sbin:/usr/libexec:/usr/lib/qemu" \
			command -v $$program >/dev/null && \
			apt-cache policy $$program | grep -q 'Candidate: [0-9]'; then \
			missing="$$missing $$program"; \
		fi; \
	done; \
	[ -z "$$missing" ] || $(SUDO) env DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends \
		-o DPkg::Lock::Timeout=300 $$missing

.venv/bin/pip: | packages
	$(PYTHON) -m venv --clear .venv

.venv/run.stamp: $(BUILD) | .venv/bin/pip
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/test.stamp: $(BUILD) | .venv/bin/pip
	$(PIP_INSTALL) --editable '.[test]'
	@touch .venv/run.stamp $@

# The backend knows what is out of date.
objects: | packages
	@$(PYTHON) bpfkeeperd/_build/backend.py bpf
