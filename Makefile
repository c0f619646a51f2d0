# Everything here sets itself up: a virtual environment in .venv, on a machine with Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check lint types bench matrix clean

demo: .venv/ready  ## a federation under attack, on data that ships with scikit-learn; about a minute
	$(BIN)/python examples/demo.py

test: .venv/ready  ## all tests; those on real data run where FEDSIEVE_DATA is set
	$(BIN)/python -m pytest -q

check: lint types test  ## what CI runs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

bench: .venv/ready  ## how fast, as ratios to the obvious way
	$(BIN)/python benchmarks/bench.py

matrix: .venv/ready  ## every attack against every defense on the digits; about seven minutes on two cores
	$(BIN)/python examples/matrix.py

clean:
	rm -rf .venv build demo runs reproduced report .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
