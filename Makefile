# Everything starts from a bare checkout with Python >= 3.11: the first target that needs it makes .venv, once.
#
#   make demo     train a matched pair on text that is already here, measure it, draw it
#   make test     every check and every test
#   make check    format, lint, types, import contracts
#   make bench    benchmarks, each a ratio within one run
#   make faults   kills, full and broken disks at every system call of training and exports: half an hour on two cores
#   make fuzz     20,000 mutated and hand-made hostile files against everything that reads one: 40 minutes on two cores
#   make page     what is generated of README.md (its gallery), experiments/robustness/README.md and rankkit/store/README.md
#
# TORCH chooses the torch build, for example:  make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test check format bench faults fuzz page clean

demo: $(VENV)/ready
	$(BIN)/rankkit demo

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs

check: $(VENV)/ready-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

fuzz: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m robustness.fuzz --out build/fuzz.json

faults: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m robustness.faults --out build/faults.json

page: $(VENV)/ready-dev
	PYTHONPATH=tests $(BIN)/python tests/store/format_page.py
	PYTHONPATH=tests $(BIN)/python tests/robustness/robustness_page.py
	PYTHONPATH=tests $(BIN)/python tests/report/gallery.py
	PYTHONPATH=tests $(BIN)/python tests/notebooks.py

bench: $(VENV)/ready-dev
	$(BIN)/python kernels/benchmarks/singular_values.py
	$(BIN)/python kernels/benchmarks/attention.py
	$(BIN)/python kernels/benchmarks/adjoint.py
	$(BIN)/python experiments/benchmarks/training_step.py
	$(BIN)/python experiments/benchmarks/capture.py
	$(BIN)/python experiments/benchmarks/matrix_free.py
	$(BIN)/python experiments/benchmarks/matrix_free.py --svds
	PYTHONPATH=tests $(BIN)/python -P experiments/benchmarks/report_page.py

# torch first and through the constraints; its own line is dropped from them when TORCH names another version.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rankkit needs Python >= 3.11, got $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making $(VENV) with $(TORCH). Download: about 200 MB for torch's CPU build and 120 MB for the rest;"
	@echo "on Linux torch's default build brings CUDA, about 3 GB: TORCH in the Makefile says how to choose the other."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt "setuptools>=77"
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(PIP) --constraint $(VENV)/constraints.txt $(TORCH)
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> $(VENV)/constraints.txt
	$(PIP) --constraint $(VENV)/constraints.txt --no-build-isolation --editable .
	touch $@

# What tests, checks and benchmarks need besides.
$(VENV)/ready-dev: $(VENV)/ready
	@echo "Adding what tests and checks need: about 240 MB."
	$(PIP) --constraint $(VENV)/constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
