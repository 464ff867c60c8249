# Each target makes its environment, installs and builds what it needs. Settings, e.g. make test TORCH=torch==2.11.0 :
#   PYTHON     the Python to make the environment with (3.10 or later)
#   VENV       the environment's folder; empty: use PYTHON as it is, and install nothing but this package
#   TORCH      the requirement to install torch by
#   PIP_ARGS   arguments to pip install, such as --extra-index-url URL
#   ARGS       arguments to pytest or bench
# setup.py lists the variables that the build heeds; FASTREG_EXPECT is described in fastreg/_extension.py.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.10
PIP_ARGS ?=
ARGS ?=
JOBS ?= $(or $(MAX_JOBS),$(shell nproc 2>/dev/null || echo 2))

BUILD_REQUIRES := "setuptools>=77" wheel pybind11 ninja cmake
export FASTREG_EXPECT ?= cpu
export FASTREG_REQUIRE_EXT ?= 1

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
PIP_INSTALL = $(PY) -m pip install $(PIP_ARGS)
# The name of a stamp holds what was asked for: asking for another torch asks for another stamp.
KEY := $(shell printf '%s' '$(TORCH) $(PIP_ARGS)' | cksum | cut -d' ' -f1)
stamp = $(if $(VENV),$(VENV)/.$(1)-$(KEY))
# ninja decides what to compile, so this runs each time.
BUILD = $(PIP_INSTALL) --no-deps --no-build-isolation -e .
# Threads that wait leave the processor to the other processes' tests.
PYTEST = OMP_WAIT_POLICY=passive $(PY) -m pytest $$($(PY) -m tests.parallel $(JOBS))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help bench data test test-full py-test kernel-test cpp-test gpu-check gpu-bundle lint docs dist build clean

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s'|'
	@sed -n '2,6s/^# *//p' $(MAKEFILE_LIST) | sed 's/^/  /'

bench: $(call stamp,bench)  ## time fastreg against PyTorch and train the digits network with both
	$(BUILD)
	$(PY) -m bench $(ARGS)

data: $(call stamp,bench)  ## find MNIST and Fashion-MNIST for the experiments, or bring them (ARGS="--to DIR")
	$(PY) -m bench.data $(ARGS)

test: py-test kernel-test cpp-test  ## all tests

test-full: ARGS += --full
test-full: export FASTREG_TEST_FULL = 1
test-full: test  ## the same with every schedule, shape and architecture, which takes long

py-test: $(call stamp,test) $(call stamp,bench)  ## the Python tests
	$(BUILD)
	$(PYTEST) $(ARGS)

# What holds for the CPU backend has to hold for the CUDA kernels, run on the CPU: tests/conftest.py says which tests.
kernel-test: $(call stamp,test) $(call stamp,bench)  ## those of operators, functions and modules, on the CUDA kernels in the host executor
	FASTREG_EXPECT=cpu FASTREG_TEST_KERNELS=host-executor MAX_JOBS=$(JOBS) $(PYTEST) $(ARGS)

cpp-test: $(call stamp,torch)  ## the CUDA kernels on the CPU, under sanitizers, without Python
	$(if $(VENV),PATH="$(abspath $(VENV))/bin:$$PATH" &&) cmake -S . -B build/cpp -G Ninja && \
	  cmake --build build/cpp -j $(JOBS) && ctest --test-dir build/cpp -j $(JOBS) --output-on-failure

build: $(call stamp,test)  ## compile and install fastreg, editable
	$(BUILD)

# Of the project's own files. The order of csrc's layers is told in csrc/ops.cpp.
includes_only = ! grep -rnE '^ *\# *include +"' csrc/$(1) | grep -vE 'include +"($(2))/'

lint: .venv-lint/.installed $(call stamp,torch)  ## ruff, clang-format, types, the order of imports and includes, and no torch header near the kernels
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	find csrc tests bench -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl' \
	  | xargs .venv-lint/bin/clang-format --dry-run -Werror
	.venv-lint/bin/basedpyright --pythonpath "$$($(PY) -c 'import sys; print(sys.executable)')"
	.venv-lint/bin/python -m tests.build.import_order
	! grep -rnE '# *include *[<"](torch|ATen|c10|pybind11|Python)\b' csrc/kernels csrc/cpu/isa
	$(call includes_only,kernels/common,kernels/common|host_executor)
	$(call includes_only,kernels/dropout,kernels/(common|dropout))
	$(call includes_only,kernels/batch_norm,kernels)
	$(call includes_only,cpu/isa,cpu/isa|kernels)
	$(call includes_only,operators,operators|kernels)
	$(call includes_only,autograd,autograd|operators|kernels)
	$(call includes_only,cpu,cpu|operators|kernels)
	$(call includes_only,cuda,cuda|operators|kernels|host_executor)

gpu-check: $(call stamp,test) $(call stamp,bench)  ## all that needs a GPU, in order of worth (ARGS="--budget 560 --resume")
	$(PY) -m tests.gpu_check $(ARGS)

# For a machine that has this Python and torch, e.g. PYTHON=python3.12 VENV=.venv-gpu TORCH=torch==2.11.0
gpu-bundle: $(call stamp,torch)  ## what gpu-check would compile, compiled ahead for one GPU (ARGS="--capability 9.0")
	$(PY) -m tests.gpu_check.bundle --jobs $(JOBS) $(ARGS)

docs: $(call stamp,docs)  ## the manual, into build/docs; warnings are errors
	$(BUILD)
	$(PY) -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

# The wheel is made of what is in the source distribution, and tried out of reach of the source folder.
dist: $(call stamp,torch)  ## a source distribution and a wheel, into dist, and a try of the wheel elsewhere
	rm -rf dist build/dist && mkdir -p dist build/dist/source build/dist/elsewhere
	$(PY) -c "from setuptools import build_meta; build_meta.build_sdist('dist')"
	tar -xzf dist/fastreg-*.tar.gz -C build/dist/source --strip-components 1
	$(PY) -m pip wheel $(PIP_ARGS) --no-deps --no-build-isolation -w dist build/dist/source
	$(PY) -m pip install $(PIP_ARGS) --no-deps --target build/dist/elsewhere dist/fastreg-*.whl
	cd build/dist/elsewhere && PYTHONPATH=. $(abspath $(PY)) $(abspath tests/build/smoke.py) && \
	  PYTHONPATH=. $(abspath $(PY)) -m fastreg

clean:  ## remove what was built; the environments stay
	rm -rf build dist *.egg-info fastreg/*.so

ifneq ($(VENV),)
$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'make: PYTHON must be 3.10 or later')"
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(call stamp,torch): | $(VENV)/bin/python
	rm -f $(VENV)/.torch-* $(VENV)/.test-* $(VENV)/.bench-*
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) $(BUILD_REQUIRES) "$(TORCH)"
	touch $@

# torch is named again, so that no extra replaces it.
$(VENV)/.%-$(KEY): pyproject.toml $(call stamp,torch)
	$(PIP_INSTALL) --no-build-isolation -e ".[$*]" "$(TORCH)"
	touch $@
endif

.venv-lint/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/pip install $(PIP_ARGS) --upgrade "pip>=25.1"
	.venv-lint/bin/pip install $(PIP_ARGS) --group lint
	touch $@
