# Everything from a bare checkout: `make demo`, `make test`, `make run`.  Each installs what it needs and can be
# run again at no cost.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never

NATIVE_SOURCES := setup.py $(shell find crd/native -name '*.[chS]') crd/native/ffi_build.py
VICTIM_SOURCES := $(wildcard tests/victims/*.c)

.PHONY: demo test run check bench fuzz sanitize dashboards setup system-packages victims clean

demo: setup
	@$(BIN)/python tests/demo.py

# In three processes (tests/lanes.py): most tests wait most of the time.
test: setup check victims
	$(BIN)/python -m pytest --numprocesses 3

# The daemon in the foreground, its state under ./var.
run: setup
	@install -d -m 0700 var
	CRD_DAEMON__STATE_DIR=$(CURDIR)/var CRD_API__SOCKET=$(CURDIR)/var/crd.sock $(BIN)/crd run

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup victims
	$(BIN)/python -m tests.bench

# Writes the dashboards anew from the programs that describe them.
dashboards: setup
	$(BIN)/python config/grafana/generate.py

# Coverage-guided, FUZZ_SECONDS for all targets; what reaches anything new is kept in tests/fuzz/corpus.
FUZZ_SECONDS := 600
fuzz: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group fuzz
	$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS)

# The C code under AddressSanitizer and UBSan, in a copy of the tree; a finding ends the process that it is found in.
# Left out: a tracer that is killed, and a tracee that shall have no alternate stack, which the sanitizer gives it.
SANITIZED := $(CURDIR)/var/sanitized
SANITIZERS := -fsanitize=address,undefined
sanitize: setup victims
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r crd tests migrations config pyproject.toml README.md CHANGELOG.md $(SANITIZED)/
	CFLAGS="$(SANITIZERS) -fno-omit-frame-pointer -fno-sanitize-recover=undefined" LDFLAGS="$(SANITIZERS)" \
		$(BIN)/python setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/build
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(CURDIR)/$(BIN)/python -m pytest tests/native tests/unit/archive/test_hostile.py \
			tests/unit/archive/test_following.py --deselect tests/native/test_chaos.py \
			--deselect tests/native/test_inject.py::test_results_and_output_come_back

setup: $(VENV)/.installed $(VENV)/.built

system-packages:
	@tests/install-system-packages.sh

$(VENV)/bin/uv: | system-packages
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --group dev 'setuptools>=77' -r pyproject.toml
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE_SOURCES) | system-packages
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	@touch $@

victims: setup
	@$(MAKE) --no-print-directory -C tests/victims

clean:
	rm -rf $(VENV) build dist *.egg-info var

# --- installation ----------------------------------------------------------------------------------------------
# `make install` as root puts everything in place and starts nothing; again, it upgrades, under a daemon that runs.
# Packagers: make install DESTDIR=... PREFIX=/usr
PREFIX := /usr/local
PYTHON := python3
DESTDIR :=

HOME_DIR := $(PREFIX)/lib/crd
UNITS := crd.service crd.socket crd-engine.socket crd-engine@.service crd-shutdown@.service
PROGRAMS := crd crctl
INSTALLED := $(PROGRAMS:%=$(PREFIX)/bin/%) $(UNITS:%=$(PREFIX)/lib/systemd/system/%) \
	$(PREFIX)/lib/sysusers.d/crd.conf $(PREFIX)/lib/tmpfiles.d/crd.conf \
	$(PREFIX)/share/man/man8/crd.8 $(PREFIX)/share/man/man1/crctl.1 $(PREFIX)/share/man/man5/crd.toml.5 \
	$(PROGRAMS:%=$(PREFIX)/share/bash-completion/completions/%) \
	$(PROGRAMS:%=$(PREFIX)/share/zsh/site-functions/_%) \
	$(PROGRAMS:%=$(PREFIX)/share/fish/vendor_completions.d/%.fish)
SHARED_DIRS := $(PREFIX)/share/doc/crd
MANUAL := $(BIN)/python -m crd.console.manual

.PHONY: install uninstall install-programs install-units install-documents

install: install-programs install-units install-documents
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then \
		systemd-sysusers crd.conf && systemd-tmpfiles --create crd.conf && systemctl daemon-reload && \
		systemctl try-restart crd.service; fi
	@echo "Installed.  To start: systemctl enable --now crd.service"

# The new programs are complete before the old ones go.
install-programs: setup
	rm -rf build/wheel $(DESTDIR)$(HOME_DIR).new $(DESTDIR)$(HOME_DIR).old
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir build/wheel .
	install -d $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/bin
	$(BIN)/uv venv --quiet --relocatable --no-project --python $(PYTHON) $(DESTDIR)$(HOME_DIR).new
	$(BIN)/uv pip install --quiet --compile-bytecode --link-mode copy --python $(DESTDIR)$(HOME_DIR).new/bin/python \
		"$$(echo build/wheel/*.whl)[postgresql]"
	if [ -e $(DESTDIR)$(HOME_DIR) ]; then mv $(DESTDIR)$(HOME_DIR) $(DESTDIR)$(HOME_DIR).old; fi
	mv $(DESTDIR)$(HOME_DIR).new $(DESTDIR)$(HOME_DIR)
	rm -rf $(DESTDIR)$(HOME_DIR).old
	for program in $(PROGRAMS); do ln -sfn ../lib/crd/bin/$$program $(DESTDIR)$(PREFIX)/bin/$$program; done

install-units:
	install -d $(DESTDIR)$(PREFIX)/lib/{systemd/system,sysusers.d,tmpfiles.d} $(DESTDIR)/etc/crd
	for unit in $(UNITS); do \
		sed 's|=/usr/|=$(PREFIX)/|' systemd/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; done
	install -m 0644 systemd/crd.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/crd.conf
	install -m 0644 systemd/crd.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/crd.conf
	[ -e $(DESTDIR)/etc/crd/crd.toml ] || install -m 0644 config/crd.toml $(DESTDIR)/etc/crd/crd.toml

install-documents: setup
	install -d $(DESTDIR)$(PREFIX)/share/{man/man{1,5,8},bash-completion/completions,doc/crd} \
		$(DESTDIR)$(PREFIX)/share/{zsh/site-functions,fish/vendor_completions.d}
	$(MANUAL) crd.__main__:crd 8 >$(DESTDIR)$(PREFIX)/share/man/man8/crd.8
	$(MANUAL) crd.cli.main:crctl 1 >$(DESTDIR)$(PREFIX)/share/man/man1/crctl.1
	$(MANUAL) config/crd.toml 5 >$(DESTDIR)$(PREFIX)/share/man/man5/crd.toml.5
	for program in $(PROGRAMS); do variable=_$${program^^}_COMPLETE; share=$(DESTDIR)$(PREFIX)/share; \
		env $$variable=bash_source $(BIN)/$$program >$$share/bash-completion/completions/$$program; \
		env $$variable=zsh_source $(BIN)/$$program >$$share/zsh/site-functions/_$$program; \
		env $$variable=fish_source $(BIN)/$$program >$$share/fish/vendor_completions.d/$$program.fish; done
	install -m 0644 README.md CHANGELOG.md LICENSE config/crd.toml $(DESTDIR)$(PREFIX)/share/doc/crd/

# What was configured (/etc/crd) and taken (/var/lib/crd) stays.
uninstall:
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then \
		systemctl disable --now crd.service crd.socket crd-engine.socket; \
		systemctl stop 'crd-shutdown@*.service'; fi
	rm -f $(INSTALLED:%=$(DESTDIR)%)
	rm -rf $(DESTDIR)$(HOME_DIR) $(SHARED_DIRS:%=$(DESTDIR)%)
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "Uninstalled.  /etc/crd and /var/lib/crd are still there."

# `make deb` writes build/crd_VERSION_ARCHITECTURE.deb: what `make install` puts in place, for this release of Debian.
DEB_ROOT := build/deb
DEB_PYTHON := /usr/bin/python3

.PHONY: deb

deb: setup
	rm -rf $(DEB_ROOT) build/crd_*.deb
	@$(MAKE) --no-print-directory install DESTDIR=$(CURDIR)/$(DEB_ROOT) PREFIX=/usr PYTHON=$(DEB_PYTHON)
	install -d $(DEB_ROOT)/DEBIAN
	install -m 0755 config/debian/{postinst,prerm,postrm} $(DEB_ROOT)/DEBIAN/
	echo /etc/crd/crd.toml >$(DEB_ROOT)/DEBIAN/conffiles
	version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("crd"))') && \
	architecture=$$(dpkg --print-architecture) && \
	python=$$($(DEB_PYTHON) -c 'import sys; print("{}.{}".format(*sys.version_info))') && \
	sed "s/@VERSION@/$$version/; s/@ARCHITECTURE@/$$architecture/; s/@PYTHON@/$$python/; \
		s/@NEXT_PYTHON@/$${python%.*}.$$(($${python#*.} + 1))/" config/debian/control >$(DEB_ROOT)/DEBIAN/control && \
	dpkg-deb --root-owner-group -Zgzip --build $(DEB_ROOT) build/crd_$${version}_$$architecture.deb
	rm -rf $(DEB_ROOT)
