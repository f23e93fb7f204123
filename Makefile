# Each target sets up what it needs in $(VENV) by itself; a second run re-uses what is there.
# STACK=openmmlab: with the open-mmlab releases, in $(VENV) = .venv-openmmlab; the default is onedl.
# MMCV=compiled: with mmcv's own compiled ops; by default mmvmamba stands in for them.
# WHEEL=path: with that wheel of mmvmamba; by default its extension is compiled.
#   make demo      train and test a small detector and a small segmentor on the demo data
#   make web       open a page to try models in the browser (WEB_ARGS="FOLDER --port 8000")
#   make test      the fast tests            make test-all   all tests
#   make lint      style, types and schemas  make bench      quick benchmarks (DEVICE=cpu|cuda)
#   make coverage  the fast tests, and the lines that they run (htmlcov/index.html)
#   make chaos     kill and resume runs at CHAOS_KILLS random moments, seeded by CHAOS_SEED
#   make fuzz      read FUZZ_FILES generated malicious checkpoints, seeded by FUZZ_SEED
#   make sanitize  the tests of native code under AddressSanitizer and UndefinedBehaviorSanitizer,
#                  emulated CUDA kernels under ThreadSanitizer too (SANITIZERS="address thread")
#   make gpu-check  build, test and benchmark on a GPU, in MINUTES=8 (OUT=dir, STEPS=1-8, DEVICE=cpu)
#   make sanitize-cuda  the ops on a GPU under compute-sanitizer
#   make docs      the documentation, in build/docs (make linkcheck: its links to other sites)
#   make wheel     source distribution and wheel, in dist, checked in $(WHEEL_ENV)
#   make setup     the set-up alone          make clean      remove builds and caches, keep .venv*

PYTHON ?= python3
# The family of OpenMMLab packages: a folder of requirements/.
STACK ?= onedl
VENV ?= $(if $(filter onedl,$(STACK)),.venv,.venv-$(STACK))
MMCV ?= pure
WHEEL ?=
# The environment in which `make wheel` tests its wheel. Another one must have torch and OpenMMLab.
WHEEL_ENV ?= .venv-wheel$(if $(filter onedl,$(STACK)),,-$(STACK))
DEVICE ?= cpu
MAX_JOBS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PYTEST_ARGS ?=
# The processes of `make test`, at most eight: `logical` is one for each logical CPU, 0 is none
# beside pytest's own.
TEST_JOBS ?= logical
CHAOS_KILLS ?= 200
CHAOS_SEED ?= 0
FUZZ_FILES ?= 20000
FUZZ_SEED ?= 0
# The number of the first file: a file depends on the seed and its number alone.
FUZZ_FIRST ?= 0
SANITIZERS ?= address thread
WORK_DIR ?= work_dirs/demo
WEB_ARGS ?=
BENCH_DIR ?= work_dirs/benchmarks
DOCS_DIR ?= build/docs
OUT ?=
MINUTES ?= 8
STEPS ?= 1-8
export MAX_JOBS
# torch compiles one file at a time unless it finds the ninja of $(VENV).
export PATH := $(PATH):$(abspath $(VENV))/bin

STACKS := $(notdir $(patsubst %/packages.txt,%,$(wildcard requirements/*/packages.txt)))
ifeq ($(filter $(STACKS),$(STACK)),)
$(error STACK must be one of $(STACKS), but got '$(STACK)')
endif
ifeq ($(filter pure compiled,$(MMCV)),)
$(error MMCV must be pure or compiled, but got '$(MMCV)')
endif
ifneq ($(WHEEL),)
ifneq ($(words $(wildcard $(WHEEL))),1)
$(error WHEEL must be the path of one wheel, but got '$(WHEEL)')
endif
override WHEEL := $(wildcard $(WHEEL))
endif
REQUIREMENTS := requirements/$(STACK)
TEST_REQUIREMENTS := $(firstword $(wildcard $(REQUIREMENTS)/test.txt) requirements/test.txt)
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --progress-bar off
EXT_SOURCES := $(wildcard csrc/*.* csrc/*/*.*)
CXX_SOURCES := $(filter %.cpp %.h %.cu %.cuh,$(EXT_SOURCES) \
	$(wildcard benchmarks/*.cpp tests/test_ops/emulator/*.* tests/test_ops/emulator/*/*.*))
SANITIZE_DIR := build/sanitize
WHEEL_DIR := build/wheel
# mmvmamba is installed from a wheel, or from this folder, without its extension if there is no C++
# compiler. The stamps of the choices have different names, so that a switch re-installs it.
COMPILER := $(if $(filter default,$(origin CXX)),c++,$(firstword $(CXX)))
READY := $(STAMPS)/package-$(if $(WHEEL),wheel-$(firstword $(shell cksum $(WHEEL))),$(if $(shell command -v $(COMPILER) 2>/dev/null),source,pure))
say = @echo "==> [$$(date +%H:%M:%S)] $(1)"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo web test test-all coverage chaos fuzz lint format bench docs linkcheck sanitize \
	sanitize-address sanitize-thread gpu-check sanitize-cuda wheel clean

help:
	@sed -n '2,19s/^# *//p' Makefile

setup: $(READY)
	$(call say,$(VENV) is ready)

demo: $(READY)
	$(BIN)/python demo/run_demo.py --work-dir $(WORK_DIR)

web: $(READY)
	$(BIN)/python demo/web.py $(WEB_ARGS)

# A file's tests share what they build, so they stay in one process. Each process computes on one
# thread, except where a test asks for more: several multi-threaded processes would oversubscribe
# the cores.
PARALLEL_PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest tests \
	--numprocesses $(TEST_JOBS) --maxprocesses 8 --dist loadfile

test: $(READY)
	$(PARALLEL_PYTEST) $(PYTEST_ARGS)

test-all: $(READY)
	$(PARALLEL_PYTEST) -m "" $(PYTEST_ARGS)

coverage: $(READY)
	$(PARALLEL_PYTEST) --cov --cov-report=term --cov-report=html $(PYTEST_ARGS)

chaos: $(READY)
	CHAOS_KILLS=$(CHAOS_KILLS) CHAOS_SEED=$(CHAOS_SEED) \
		$(BIN)/pytest tests/test_tools/test_faults.py -m "" $(PYTEST_ARGS)

# Files that fail stay in build/fuzz/test_campaign0/failures.
fuzz: $(READY)
	mkdir -p build
	FUZZ_FILES=$(FUZZ_FILES) FUZZ_SEED=$(FUZZ_SEED) FUZZ_FIRST=$(FUZZ_FIRST) OMP_NUM_THREADS=1 \
		$(BIN)/pytest tests/test_checkpoint/test_fuzz.py --capture=no --basetemp=build/fuzz $(PYTEST_ARGS)

# mypy reads the types of the installed torch.
lint: $(STAMPS)/lint $(STAMPS)/torch
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format --force-filetype yaml CITATION.cff
	$(if $(CXX_SOURCES),$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES))
	$(BIN)/hadolint docker/Dockerfile*

format: $(STAMPS)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_SOURCES),$(BIN)/clang-format -i $(CXX_SOURCES))

bench: $(READY)
	$(BIN)/python benchmarks/ops.py --quick --device $(DEVICE) --out $(BENCH_DIR)/ops.json
	$(BIN)/python benchmarks/backbone.py --quick --device $(DEVICE) --out $(BENCH_DIR)/backbone.json
	$(BIN)/python benchmarks/detector.py --quick --device $(DEVICE) --out $(BENCH_DIR)/detector.json
	$(BIN)/python benchmarks/plot.py $(BENCH_DIR)/backbone.json --out $(BENCH_DIR)/latency.png

# Warnings are errors, links within the repository are checked, and every run starts afresh.
SPHINX = OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env \
	--quiet --conf-dir docs

docs: $(READY) $(STAMPS)/docs
	$(SPHINX) -b html . $(DOCS_DIR)
	@echo "$(DOCS_DIR)/index.html"

# Asks every site that the documentation links to: needs a network, leaves nothing out.
linkcheck: $(READY) $(STAMPS)/docs
	$(SPHINX) -b linkcheck . $(DOCS_DIR)-links

# Python itself is not built with the sanitizers: their run-time libraries must be loaded before it,
# and libstdc++ with them, or they miss the exceptions of C++. What Python keeps until its exit is no
# leak of ours. The tests see a copy of the package that holds the sanitized extension: PYTHONPATH
# comes before the editable installation. A report ends the process: pytest must not hold it back.
# An allocation that is too large fails as elsewhere: a test looks at what torch then says. Threads
# that wait in a loop take, under the sanitizers, most of the time from those that work.
SANITIZE_ENV = MMVMAMBA_SANITIZE=1 PYTHONPATH=$(CURDIR)/$(SANITIZE_DIR)/lib PYTHONMALLOC=malloc \
	OMP_WAIT_POLICY=passive \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1 \
	UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

# The emulator (tests/test_ops/emulator) tells ThreadSanitizer of the threads of a GPU. Its memory map
# does not fit every random layout of a process. One seed: it needs no wrong result to find a race.
TSAN_ENV = MMVMAMBA_SANITIZE=thread PYTHONMALLOC=malloc OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
	TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 \
	$$(setarch -R true 2>/dev/null && echo setarch -R)
TSAN_TESTS = order_of_threads or last_state or narrow_output

# The ops in PyTorch, as blocks and networks call them, and in ONNX Runtime.
SANITIZE_TESTS = tests/test_ops tests/test_nn/test_cpu_inference.py \
	tests/test_export/test_onnxruntime.py

sanitize: $(SANITIZERS:%=sanitize-%)

sanitize-thread: $(READY)
	$(call say,emulated CUDA kernels under ThreadSanitizer)
	$(TSAN_ENV) $(BIN)/pytest tests/test_ops/test_cuda_emulated.py -k "$(TSAN_TESTS)" \
		-p no:cacheprovider --capture=sys $(PYTEST_ARGS)

sanitize-address: $(READY)
	$(call say,sanitizer build of the extension)
	rm -rf $(SANITIZE_DIR)/lib
	MMVMAMBA_SANITIZE=1 MMVMAMBA_BUILD_EXT=1 $(BIN)/python setup.py --quiet build \
		--build-base $(SANITIZE_DIR) --build-lib $(SANITIZE_DIR)/lib
	$(call say,tests of the native code under the sanitizers)
	@$(SANITIZE_ENV) $(BIN)/python -c \
		"import sys; del sys.path[0]; import mmvmamba as m; assert '$(SANITIZE_DIR)' in m.__file__, m"
	$(SANITIZE_ENV) $(BIN)/pytest $(SANITIZE_TESTS) -p no:cacheprovider --capture=sys $(PYTEST_ARGS)

# Installs nothing. Uses the Python of $(VENV) if it exists.
gpu-check:
	DEVICE="$(if $(filter file,$(origin DEVICE)),cuda,$(DEVICE))" MINUTES="$(MINUTES)" STEPS="$(STEPS)" \
		PYTHON="$(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(BIN)/python) $(PYTHON)),$(PYTHON))" \
		bash benchmarks/gpu_check.sh "$(OUT)"

sanitize-cuda:
	$(MAKE) gpu-check STEPS=4

# The wheel leaves out the libraries of torch and CUDA, which are in the process before its own load.
# The last steps find no compiler: their PATH is the environment alone.
WHEEL_BIN = $(abspath $(WHEEL_ENV))/bin
WHEEL_PYTHON = env -u PYTHONPATH PATH=$(WHEEL_BIN) $(WHEEL_BIN)/python
REPAIR = $(BIN)/python -m auditwheel repair --plat auto --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	--exclude 'libcudart.so.*'

wheel: $(STAMPS)/torch $(STAMPS)/wheel-tools
	$(call say,source distribution and wheel)
	rm -rf $(WHEEL_DIR) dist && mkdir -p $(WHEEL_DIR)
	MMVMAMBA_BUILD_EXT=1 $(BIN)/python -m build --no-isolation --outdir $(WHEEL_DIR) \
		>$(WHEEL_DIR)/build.log 2>&1 || { tail -n 50 $(WHEEL_DIR)/build.log; exit 1; }
	$(call say,repair and ABI audit of the wheel)
	PATH="$(abspath $(BIN)):$$PATH" $(REPAIR) --wheel-dir dist $(WHEEL_DIR)/*.whl
	mv $(WHEEL_DIR)/*.tar.gz dist
	$(BIN)/python -m zipfile -e dist/*.whl $(WHEEL_DIR)/contents
	$(BIN)/torch-abi-audit --check torch --verbose $(WHEEL_DIR)/contents/mmvmamba
	$(if $(filter file,$(origin WHEEL_ENV)),$(MAKE) VENV=$(WHEEL_ENV) $(WHEEL_ENV)/.stamps/packages)
	$(call say,smoke test of the wheel in $(WHEEL_ENV))
	$(WHEEL_PYTHON) -m pip install --quiet --no-deps --force-reinstall dist/*.whl
	$(WHEEL_PYTHON) -m pip check
	cp tests/smoke_wheel.py $(WHEEL_DIR)
	$(WHEEL_PYTHON) $(WHEEL_DIR)/smoke_wheel.py
	@ls -l dist

clean:
	rm -rf build dist *.egg-info mmvmamba/_C* mmvmamba/_build_info*.py mmvmamba/.mim
	rm -rf .pytest_cache .ruff_cache .hypothesis .coverage htmlcov .venv*/.stamps/package-* $(STAMPS)/package-*
	find . -name __pycache__ -not -path './.venv*/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- set-up ----------------------------------------------------------------------------------------

$(STAMPS)/venv: requirements/build.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "$(PYTHON) does not run, or is older than Python 3.10: make PYTHON=python3.x"; exit 1; }
	$(call say,1/5 virtual environment in $(VENV))
	@$(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made: \
	Debian and Ubuntu have it in the package python3-venv"; exit 1; }
	@mkdir -p $(STAMPS)
	$(INSTALL) -r $<
	@touch $@

$(STAMPS)/torch: requirements/torch.txt | $(STAMPS)/venv
	$(call say,2/5 PyTorch: downloading about 3 GB unless pip has it cached)
	$(INSTALL) -r $<
	@touch $@

# The setup.py of onedl-mmcv leaves the ops out where it cannot import torch, as in an isolated build.
# pip's cache does not tell a build with the ops from one without.
INSTALL_MMCV = rm -f $(STAMPS)/mmcv-*; $(PIP) uninstall -qq --yes onedl-mmcv mmcv mmcv-lite && \
	$(INSTALL) --no-cache-dir --no-deps

$(STAMPS)/mmcv-pure: $(REQUIREMENTS)/mmcv.txt $(STAMPS)/torch
	$(call say,3/5 mmcv without its compiled ops)
	$(INSTALL_MMCV) -r $<
	@touch $@

# With a GPU mmcv builds its CUDA ops, which needs nvcc; without nvcc it is told not to see the GPU.
# The mmcv-lite of open-mmlab has no ops: another package, in mmcv-compiled.txt, has them.
$(STAMPS)/mmcv-compiled: $(firstword $(wildcard $(REQUIREMENTS)/mmcv-compiled.txt) $(REQUIREMENTS)/mmcv.txt) $(STAMPS)/torch
	$(call say,3/5 mmcv: compiling its ops (6 to 12 minutes on 2 cores))
	command -v nvcc >/dev/null || export CUDA_VISIBLE_DEVICES=; \
		$(INSTALL_MMCV) --no-build-isolation -r $<
	@touch $@

# The constraint keeps the torch and the NumPy that all the others were compiled for. opencv-python
# needs libGL; on a machine without it the headless build of the same version serves.
$(STAMPS)/packages: $(REQUIREMENTS)/packages.txt requirements/test.txt requirements/web.txt $(TEST_REQUIREMENTS) $(STAMPS)/mmcv-$(MMCV)
	$(call say,4/5 mmdet mmseg mmpretrain and the test tools)
	$(INSTALL) -r $< -r $(TEST_REQUIREMENTS) -c requirements/torch.txt
	@$(BIN)/python -c "import cv2" >/dev/null 2>&1 || { \
		echo "cv2 does not load here: opencv-python is replaced by opencv-python-headless"; \
		version=$$($(BIN)/python -c "from importlib.metadata import version; print(version('opencv-python'))") && \
		$(PIP) uninstall --quiet --yes opencv-python && \
		$(INSTALL) --force-reinstall --no-deps opencv-python-headless==$$version && \
		$(BIN)/python -c "import cv2"; }
	@touch $@

$(STAMPS)/package-source: setup.py pyproject.toml mmvmamba/version.py $(EXT_SOURCES) $(STAMPS)/torch | $(STAMPS)/packages
	$(call say,5/5 mmvmamba: compiling its extension (1 minute on 2 cores))
	@rm -f $(STAMPS)/package-*
	MMVMAMBA_BUILD_EXT=1 $(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(STAMPS)/package-pure: setup.py pyproject.toml mmvmamba/version.py $(STAMPS)/torch | $(STAMPS)/packages
	$(call say,5/5 mmvmamba with the slower PyTorch implementation: there is no C++ compiler ($(COMPILER)) and no WHEEL=path)
	@rm -f $(STAMPS)/package-*
	MMVMAMBA_BUILD_EXT=0 $(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(STAMPS)/package-wheel-%: $(STAMPS)/torch | $(STAMPS)/packages
	$(call say,5/5 mmvmamba from $(WHEEL))
	@rm -f $(STAMPS)/package-*
	$(INSTALL) --no-deps --force-reinstall $(WHEEL)
	@touch $@

$(STAMPS)/lint: requirements/lint.txt | $(STAMPS)/venv
	$(call say,lint tools)
	$(INSTALL) -r $<
	@touch $@

$(STAMPS)/docs: requirements/docs.txt $(STAMPS)/packages
	$(call say,Sphinx)
	$(INSTALL) -r $<
	@touch $@

$(STAMPS)/wheel-tools: requirements/wheel.txt | $(STAMPS)/venv
	$(call say,wheel tools)
	$(INSTALL) -r $<
	@touch $@
