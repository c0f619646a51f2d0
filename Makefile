# Everything here sets itself up: a virtual environment in .venv, on a machine with Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check lint types bench bench-smoke matrix clean

demo: .venv/ready  ## a federation under attack, on data that ships with scikit-learn; about a minute
	$(BIN)/python examples/demo.py

test: .venv/ready  ## all tests, two at a time; those on real data run where FEDSIEVE_DATA is set
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

check: lint types bench-smoke test  ## what CI runs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

bench: .venv/ready  ## speed as ratios to the obvious implementation
	$(BIN)/python benchmarks/bench.py

bench-smoke: .venv/ready  ## that the benchmarks run and compute the same on both sides
	$(BIN)/python benchmarks/bench.py --smoke

matrix: .venv/ready  ## every attack against every defense on the digits; about seven minutes on two cores
	$(BIN)/python examples/matrix.py

clean:
	rm -rf .venv build demo runs reproduced report .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
