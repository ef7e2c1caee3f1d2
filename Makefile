# Each target sets up what it needs. PYTHON chooses the interpreter (3.11, 3.12 or 3.13) of a new VENV,
# CONSTRAINTS the versions in it:
#   make test PYTHON=python3.13 VENV=.venv313
#   make test CONSTRAINTS=constraints-oldest.txt VENV=.venvoldest
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed
# A checkout of VISSL's to test with in the place of its wheel.
ON_SOURCE = $(if $(VISSL_SOURCE),PYTHONPATH=$(VISSL_SOURCE))
FOR_SOURCE = $(VENV)/.installed-for-source
QUICKSTART = config=pretrain/vissl_barlow/digits_quickstart config.BARLOW.MAP_IMAGES=256

.PHONY: help install quickstart browser test soak lint bench bench-gpu slurm test-slurm test-gpu test-detection clean

help:
	@echo "make quickstart      install into $(VENV), pretrain on real digits, show what it learned"
	@echo "make test            the test suite (no GPU, no Detectron2); installs Chromium if it is root"
	@echo "make soak            a long run does not grow: memory, descriptors, files, logs (minutes)"
	@echo "make lint            style and types"
	@echo "make bench           speed and memory against the authors' and VISSL's code (BENCH_ARGS=--quick)"
	@echo "make bench-gpu       the whole training step, on a GPU; fails without one"
	@echo "make test-gpu        the tests that need a GPU; fails without one"
	@echo "make test-slurm      a real SLURM of two nodes, and two hosts without it, on this machine; fails where it is not root"
	@echo "make test-detection  the tests that need Detectron2; fails without it"

install: $(INSTALLED)

# VISSL 0.1.6 pins numpy 1.19.5, hydra 1.0.7, scikit-learn 0.24.1 and cython, which no current Python
# can build, and its wheel carries an old copy of classy_vision: both come without dependencies, VISSL
# first, classy-vision over it.
$(INSTALLED): setup.py $(CONSTRAINTS) constraints-common.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d, and 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -c $(CONSTRAINTS) -e ".[test]"
	$(RUN) -m pip install --quiet --no-deps vissl==0.1.6
	$(RUN) -m pip install --quiet --no-deps --force-reinstall classy-vision==0.7.0
	@touch $@

# What VISSL's main branch imports besides.
$(FOR_SOURCE): $(INSTALLED)
	$(RUN) -m pip install --quiet -c $(CONSTRAINTS) nvtx pandas timm
	@touch $@

quickstart: $(INSTALLED)
	$(RUN) -m tools.run_distributed_engines $(QUICKSTART) config.CHECKPOINT.DIR=quickstart
	$(RUN) -m vissl_barlow.reproduce report quickstart --out quickstart/report

# The report's page is tested in a real browser, which pip cannot bring.
browser:
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; \
	else echo "the tests need Chromium or Chrome on the path: install it (apt install chromium)"; exit 1; fi

# One test process per core, one thread each: threads that wait for each other on a busy core cost
# more than they bring. The order is tests/conftest.py's: files of minutes first.
test: $(INSTALLED) $(if $(VISSL_SOURCE),$(FOR_SOURCE)) browser
	$(ON_SOURCE) OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadscope --no-loadscope-reorder -m "not gpu and not detectron2 and not slurm" $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(INSTALLED)
	for benchmark in tests/benchmarks/bench_*.py; do $(RUN) $$benchmark --out bench $(BENCH_ARGS) || exit 1; done

bench-gpu: $(INSTALLED)
	@$(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "bench-gpu needs a CUDA device, and torch sees none")'
	for benchmark in step lars; do $(RUN) tests/benchmarks/bench_$$benchmark.py --out bench || exit 1; done

# Programs of Debian's; the tests start a cluster and a network of their own and touch no other.
slurm:
	@for name in sbatch slurmctld slurmd munged ip; do \
		PATH="$$PATH:/usr/sbin" command -v $$name > /dev/null || missing="$$missing $$name"; done; \
	if [ -z "$$missing" ]; then exit; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge iproute2; \
	else echo "the tests need$$missing: install them (apt install slurm-wlm munge iproute2)"; exit 1; fi

test-slurm: $(INSTALLED) slurm
	@[ "$$(id -u)" = 0 ] || { echo "test-slurm needs root, as its cluster's daemons and its network do"; exit 1; }
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slurm $(PYTEST_ARGS) tests/slurm

# 10,000 steps and 1,250 epochs of the run that the suite makes 400 steps long.
soak: $(INSTALLED)
	FAULTS_SOAK_STEPS=10000 OMP_NUM_THREADS=1 $(RUN) -m pytest -s tests/plugin/run/test_soak.py

test-gpu: $(INSTALLED)
	@$(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "test-gpu needs a CUDA device, and torch sees none")'
	$(RUN) -m pytest -m gpu $(PYTEST_ARGS)

test-detection: $(INSTALLED)
	@$(RUN) -c 'import detectron2' || { echo "test-detection needs Detectron2 in $(VENV): see docs/detection.md"; exit 1; }
	$(RUN) -m pytest -m detectron2 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) quickstart bench build *.egg-info
