# `make run` and `make test` each do all the set-up on a bare Debian 12+ or Ubuntu 24.04.

# The distribution's own Python: python3-venv and python3-dev belong to it.
PYTHON ?= /usr/bin/python3

PACKAGES := clang llvm libbpf-dev libelf-dev zlib1g-dev libsystemd-dev pkg-config gcc libc6-dev \
	python3-venv python3-dev iproute2 procps openssl

# What only `make test-kernels` needs. virtiofsd is part of qemu-system-common on some releases.
GUEST_PACKAGES := qemu-system-x86 qemu-system-common busybox-static cpio
# What only `make test-systemd` needs.
NSPAWN_PACKAGES := systemd-container
KERNELS ?=
TESTS ?=

# What `make install` needs beside PACKAGES: to build, and to run with the distribution's own Python
# packages; `make deb` needs the programs that make packages besides.
INSTALL_PACKAGES := $(PACKAGES) python3-setuptools python3-cffi python3-yaml python3-pyelftools \
	python3-prometheus-client python3-systemd
DEB_PACKAGES := $(PACKAGES) python3-setuptools python3-cffi build-essential debhelper dh-python

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

# Where `make install` places things; DESTDIR goes before all of it, for packages.
PREFIX ?= /usr/local
# The daemon's modules belong to it alone: a directory of its own, and not one of Python's, makes
# them the same for every version of Python, and nobody's but the daemon's.
LIBRARY := $(PREFIX)/lib/bpfkeeperd
SHARE := $(PREFIX)/share/bpfkeeperd
DOCS := $(PREFIX)/share/doc/bpfkeeperd
MAN := $(PREFIX)/share/man
UNITS ?= $(PREFIX)/lib/systemd/system
CATALOG := $(PREFIX)/lib/systemd/catalog
# Not below PREFIX: the daemon looks there.
MANIFESTS := /etc/bpfkeeperd
# The first systemd that keeps descriptors while a service is stopped.
PRESERVES := pkg-config --atleast-version=254 libsystemd

DEB_VERSION ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' bpfkeeperd/__init__.py)
DEB_TREE := build/deb/bpfkeeperd

.PHONY: help setup run demo-clean test test-errno test-kernels guest-packages lint fuzz soak bench clean packages objects \
	install uninstall install-packages deb deb-packages test-deb test-systemd nspawn-packages
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

test-errno: setup ## each call of bpf(2) and of bpffs fails with each of five errnos; some 15 minutes
	$(AS_ROOT) env ERRNO_STRIDE=0 .venv/bin/python -m pytest -p no:cacheprovider tests/kernel/test_errno.py

test-kernels: setup guest-packages ## tests on other kernels, in qemu: KERNELS="6.1 6.12 6.12+lockdown" TESTS=FILES
	@$(AS_ROOT) .venv/bin/python -m tests.guests $(if $(KERNELS),--kernels "$(KERNELS)") $(TESTS)

test-systemd: setup deb-packages nspawn-packages ## the package's service in a systemd booted for it: TESTS=FILES
	@$(AS_ROOT) .venv/bin/python -m tests.systemd $(TESTS)

test-deb: setup deb-packages ## install, upgrade and purge the Debian package in a root of its own
	$(AS_ROOT) .venv/bin/python -m pytest -p no:cacheprovider tests/package

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

# Packages are installed for what is to run here, not for what is put in DESTDIR.
install: $(if $(DESTDIR),,install-packages) build/library.stamp build/man.stamp ## place everything below PREFIX (/usr/local), or DESTDIR and PREFIX
	install -d $(addprefix $(DESTDIR),$(LIBRARY) $(PREFIX)/bin $(UNITS) $(CATALOG) $(SHARE)/systemd \
		$(SHARE)/prometheus $(SHARE)/grafana $(DOCS)/examples/bpf $(MAN)/man5 $(MAN)/man8 $(MANIFESTS)/conf.d)
	rm -rf $(DESTDIR)$(LIBRARY)/bpfkeeperd
	cp -r --no-preserve=ownership build/library/bpfkeeperd $(DESTDIR)$(LIBRARY)/
	chmod -R u=rwX,go=rX $(DESTDIR)$(LIBRARY)
	$(if $(DESTDIR),,$(PYTHON) -m compileall -q $(LIBRARY))
	printf '%s\n' '#!$(PYTHON) -I' 'import sys' '' 'sys.path.insert(0, "$(LIBRARY)")' '' \
		'from bpfkeeperd.__main__ import main' '' 'sys.exit(main())' | \
		install -m 755 /dev/stdin $(DESTDIR)$(PREFIX)/bin/bpfkeeperd
	install -m 644 systemd/*.service systemd/*.socket $(DESTDIR)$(UNITS)/
	sed -i 's|/usr/bin/bpfkeeperd|$(PREFIX)/bin/bpfkeeperd|' $(DESTDIR)$(UNITS)/bpfkeeperd.service
	$(foreach file,$(wildcard systemd/*.catalog),install -m 644 $(file) $(DESTDIR)$(CATALOG)/;)
	$(foreach file,$(wildcard systemd/drop-ins/*.conf),install -m 644 $(file) $(DESTDIR)$(SHARE)/systemd/;)
	sed 's|/usr/share/|$(PREFIX)/share/|' build/man/bpfkeeperd.8 | \
		install -m 644 /dev/stdin $(DESTDIR)$(MAN)/man8/bpfkeeperd.8
	install -m 644 build/man/bpfkeeperd.yaml.5 $(DESTDIR)$(MAN)/man5/
	if [ -e systemd/drop-ins/preserve.conf ] && $(PRESERVES); then \
		install -D -m 644 systemd/drop-ins/preserve.conf $(DESTDIR)$(UNITS)/bpfkeeperd.service.d/preserve.conf; \
	fi
	install -m 644 config/prometheus/*.yml $(DESTDIR)$(SHARE)/prometheus/
	install -m 644 config/grafana/*.json $(DESTDIR)$(SHARE)/grafana/
	install -m 644 README.md CHANGELOG.md $(DESTDIR)$(DOCS)/
	install -m 644 config/examples/* $(DESTDIR)$(DOCS)/examples/
	install -m 644 bpf/*.c bpf/*.h $(DESTDIR)$(DOCS)/examples/bpf/
	sed -i -e 's|\.\./\.\./bpfkeeperd/bpf/|$(LIBRARY)/bpfkeeperd/bpf/|' -e 's|\.venv/bin/||g' \
		-e 's|config/examples/|$(DOCS)/examples/|g' $(DESTDIR)$(DOCS)/examples/*.*
	[ -e $(DESTDIR)$(MANIFESTS)/bpfkeeperd.yaml ] || \
		install -m 644 config/bpfkeeperd.yaml $(DESTDIR)$(MANIFESTS)/

uninstall: ## remove what `make install` placed, but the manifest; programs stay attached, maps pinned
	rm -rf $(addprefix $(DESTDIR),$(LIBRARY) $(SHARE) $(DOCS) $(PREFIX)/bin/bpfkeeperd)
	rm -rf $(DESTDIR)$(UNITS)/bpfkeeperd.service $(DESTDIR)$(UNITS)/bpfkeeperd.service.d \
		$(DESTDIR)$(UNITS)/bpfkeeperd-metrics.socket $(DESTDIR)$(CATALOG)/bpfkeeperd.catalog \
		$(DESTDIR)$(MAN)/man5/bpfkeeperd.yaml.5 $(DESTDIR)$(MAN)/man8/bpfkeeperd.8

.PHONY: man
man: build/man.stamp ## make the manual pages in build/man/

build/man.stamp: $(wildcard bpfkeeperd/_build/*.py bpfkeeperd/*.py)
	@mkdir -p build
	PYTHONPATH=. $(PYTHON) -B bpfkeeperd/_build/manpages.py build/man
	@touch $@

# The folders, too: a module that is removed changes nothing else.
build/library.stamp: $(BUILD) bpfkeeperd bpfkeeperd/kernel $(wildcard bpfkeeperd/*.py bpfkeeperd/*.pyi bpfkeeperd/kernel/*.py bpf/*)
	@mkdir -p build
	$(PYTHON) -B -W ignore bpfkeeperd/_build/backend.py library build/library
	@touch $@

# A copy of the files that git does not ignore, or where there is no git of all that is not built, so
# that nothing else of the checkout gets into the package, or the other way round.
deb: deb-packages ## make a Debian package in dist/
	@rm -rf build/deb && mkdir -p $(DEB_TREE) dist
	@if git ls-files --error-unmatch Makefile >/dev/null 2>&1; then \
		git ls-files -z --cached --others --exclude-standard; \
	else \
		find . \( -name .git -o -name __pycache__ $(foreach name,$(BUILT),-o -path './$(name)') \) -prune \
			-o -type f -print0; \
	fi | tar --create --ignore-failed-read --null --files-from=- | tar --extract --directory=$(DEB_TREE)
	@cp -r config/debian $(DEB_TREE)/debian
	@printf 'bpfkeeperd (%s) unstable; urgency=medium\n\n  * What is new stands in CHANGELOG.md.\n\n -- %s  %s\n' \
		'$(DEB_VERSION)' "$$(sed -n 's/^Maintainer: //p' config/debian/control)" \
		"$$(date --utc --rfc-email --date="@$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || \
			stat --format %Y CHANGELOG.md)}")" >$(DEB_TREE)/debian/changelog
	cd $(DEB_TREE) && DEB_BUILD_OPTIONS="$${DEB_BUILD_OPTIONS:-nocheck noautodbgsym}" dpkg-buildpackage -b -us -uc
	@rm -f dist/bpfkeeperd_*.deb && cp build/deb/bpfkeeperd_*.deb dist/
	@cd build/deb && printf "made dist/%s\n" *.deb

# Asks dpkg first: on a machine that has everything this is quick and needs no root. bpftool, which
# only tests use as they do tmux, and virtiofsd are no packages of their own on some releases: such a
# program is installed where there is a package of its name.
packages: WANTED := $(PACKAGES)
packages: OPTIONAL := bpftool tmux
guest-packages: WANTED := $(GUEST_PACKAGES)
guest-packages: OPTIONAL := virtiofsd
install-packages: WANTED := $(INSTALL_PACKAGES)
deb-packages: WANTED := $(DEB_PACKAGES)
nspawn-packages: WANTED := $(NSPAWN_PACKAGES)
packages guest-packages install-packages deb-packages nspawn-packages:
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
