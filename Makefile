# make demo | make test | make check | make docs; each sets up .venv first, from the pinned versions in constraints.txt

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: install demo test test-quick test-all docs test-isa fuzz check format benchmarks growth clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# the reference dense CRF, which tests and benchmarks compare with, has to be compiled; they say so where it is missing
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[oracle]' || echo 'no compiler for pydensecrf2: tests against it are skipped'
	# the dense CRF, which would otherwise be compiled beside the first run
	$(BIN)/python -W ignore -m wsss.ops.crf.ahead >/dev/null
	touch $@

demo: $(INSTALLED)
	$(BIN)/wsss demo --out runs/demo

# tests of a file stay on one process, so that what they share is made once
# one thread for each of the two workers: more of them would wait for each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# some of every room of the code, in a few minutes
test-quick: $(INSTALLED)
	$(PYTEST) -m 'not slow and not fuzz and not whole'

test: $(INSTALLED)
	$(PYTEST) -m 'not slow and not fuzz'

test-all: $(INSTALLED)
	$(PYTEST) -m 'not fuzz'

# the tests that compare numbers, which each instruction set rounds in its own way
COMPARING := tests/parity tests/ops tests/networks tests/methods tests/refiners tests/segmenters tests/stages \
	tests/data/test_grids.py tests/test_launch.py tests/test_metrics.py tests/test_pretrained.py

test-isa: $(INSTALLED)
	ATEN_CPU_CAPABILITY=default $(PYTEST) -m 'not slow and not fuzz' $(COMPARING)
	ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m 'not slow and not fuzz' $(COMPARING)

# random input, FUZZ_SECONDS a target
fuzz: $(INSTALLED)
	$(PYTEST) -m fuzz tests/fuzz

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation as a site in build/docs; nothing is fetched while it is built, nor by the pages
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(INSTALLED)
	$(BIN)/python benchmarks/dense_crf.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/clip_es.py
	$(BIN)/python benchmarks/random_walk.py

# half an hour of CPU time; GROWTH=--quick is a look at smaller numbers
growth: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py --out runs/growth $(GROWTH)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
