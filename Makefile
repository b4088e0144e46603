# SPDX-License-Identifier: Apache-2.0
# Thin front of Meson: `make help` lists what there is.
BUILD ?= build
PREFIX ?=
DESTDIR ?=
ONLY ?=
KILLS ?=
MINUTES ?=
MESON_ARGS ?=

ENGINE = $(if $(findstring engine=system,$(MESON_ARGS))$(findstring engine_dir=,$(MESON_ARGS)),true,tools/build-engine)

.PHONY: all build setup demo test test-oci test-k8s soak bench check install clean help

all: setup
	@$(MAKE) --no-print-directory build

# The engine first and on its own: Meson would hide its progress.
build:
	@$(ENGINE) >/dev/null
	@test -e $(BUILD)/build.ninja || \
		meson setup $(BUILD) $(if $(PREFIX),--prefix=$(PREFIX)) $(MESON_ARGS)
	@$(if $(TESTS),meson introspect --tests $(BUILD) | grep -q '"name": "e2e"' || \
		meson setup --reconfigure $(BUILD) -Dtests=enabled)
	@$(if $(BENCH),meson introspect --targets $(BUILD) | grep -q '"name": "bench-iceoryx"' || \
		meson setup --reconfigure $(BUILD) -Dbench=true)
	@ninja -C $(BUILD)

setup:
	@tools/setup build

demo:
	@tools/setup build guests
	@$(MAKE) --no-print-directory build
	@ninja -C $(BUILD) guests
	@tools/get-photo $(BUILD)/photo.jpg
	@mkdir -p $(BUILD)/demo
	$(BUILD)/roadrunner run $(BUILD)/guests/examples/photo/workflow.yaml \
		-i $(BUILD)/photo.jpg -o $(BUILD)/demo/photo.jpg
	@echo "The result lies in $(CURDIR)/$(BUILD)/demo/photo.jpg"

test:
	@tools/setup build guests test oci
	@$(MAKE) --no-print-directory build TESTS=1
	@tools/run-tests $(BUILD)

# Of these `make test` and CI run all, too.
test-oci:
	@tools/setup build guests test oci
	@$(MAKE) --no-print-directory build TESTS=1
	@ninja -C $(BUILD) guests
	@RR_BUILD=$(abspath $(BUILD)) /usr/bin/python3 -m pytest -q -rs -p no:cacheprovider tests/e2e/test_oci.py \
		tests/e2e/test_bundles.py tests/e2e/test_containerd.py tests/e2e/test_cri.py tests/e2e/test_podman.py

# Not part of CI: 10 to 15 minutes of building, once, and 3 of tests.
test-k8s:
	@tools/setup build guests oci k8s
	@$(MAKE) --no-print-directory build
	@ninja -C $(BUILD) guests
	@tests/k8s/build >/dev/null
	@RR_BUILD=$(abspath $(BUILD)) /usr/bin/python3 -m pytest -q -rs -p no:cacheprovider tests/k8s

soak:
	@tools/setup build guests
	@$(MAKE) --no-print-directory build
	@ninja -C $(BUILD) guests
	@tests/soak/kills.py --build $(BUILD) $(if $(KILLS),--kills $(KILLS)) \
		$(if $(MINUTES),--minutes $(MINUTES))

bench:
	@tools/setup build guests
	@tools/setup bench || echo "bench: going on without the peers that these packages hold" >&2
	@$(MAKE) --no-print-directory build BENCH=1
	@ninja -C $(BUILD) guests
	@bench/run --build $(BUILD) $(if $(ONLY),--only $(ONLY))

check:
	@.ci/run

# Never builds as root what a user may have built: run `make PREFIX=...` first.
install:
	@test -e $(BUILD)/roadrunner || $(MAKE) --no-print-directory all
	@test -z "$(PREFIX)" || meson setup --reconfigure $(BUILD) --prefix=$(PREFIX) >/dev/null
	@meson install -C $(BUILD) --no-rebuild $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))

clean:
	rm -rf $(BUILD)

help:
	@echo "make                          build $(BUILD)/roadrunner (installs what is missing, when it may)"
	@echo "make demo                     run the photo pipeline, and say where the result lies"
	@echo "make test                     all tests; ends with the line N passed, N failed"
	@echo "make test-oci                 those of containers: OCI command, containerd, CRI, podman"
	@echo "make test-k8s                 those on a Kubernetes of two nodes, built once (15 min), run in 3 min"
	@echo "make soak [KILLS=n MINUTES=m] workers killed at random moments; ends with N kills, M runs, N failed"
	@echo "make bench [ONLY=name]        benchmarks; writes $(BUILD)/bench.json"
	@echo "make check                    what CI runs: tests, sanitizers, fuzzing, linters"
	@echo "make install [DESTDIR= PREFIX=]"
	@echo "make clean                    remove $(BUILD); built engines stay in ~/.cache/roadrunner"
	@echo "Options for Meson: MESON_ARGS='-Dengine=system' and others of meson_options.txt"
