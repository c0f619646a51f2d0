# Everything here sets itself up: a virtual environment in .venv, on a machine with Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check lint types docs bench bench-smoke bench-others flower-test flower-demo flower-faults flower-bench matrix torture audit lock clean

demo: .venv/ready  ## a federation under attack, on data that ships with scikit-learn; about a minute
	$(BIN)/python examples/demo.py

test: .venv/ready  ## all tests, two at a time; those on real data run where FEDSIEVE_DATA is set
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

check: lint types docs bench-smoke test  ## what CI runs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

docs: .venv/ready  ## the documentation's site, to build/docs, with warnings as errors
	$(BIN)/python -m sphinx -q -W --keep-going -j 2 -b html -d build/doctrees docs build/docs

bench: .venv/ready  ## every goal with figure, ratio and verdict, to docs/results/bench.md; twenty minutes on two cores
	$(BIN)/python benchmarks/bench.py

bench-smoke: .venv/ready  ## that the benchmarks run and compute the same on both sides
	$(BIN)/python benchmarks/bench.py --smoke

bench-others: build/others/ready  ## Flower and ByzFL for `make bench`, in an environment of their own

flower-test: build/flower/ready  ## the tests that need Flower, a deployment under attack among them; fifteen minutes on two cores
	OMP_NUM_THREADS=1 FEDSIEVE_DEPLOYMENT_PAGE=docs/results/flower/deployment.md \
	  build/flower/bin/python -m pytest -q -m 'slow or not slow' tests/flower/test_*.py

flower-demo: build/flower/ready  ## that deployment on the digits, from its certificates to a table of nodes; some minutes
	OMP_NUM_THREADS=1 build/flower/bin/python tests/flower/deployment/scenario.py

flower-faults: build/flower/ready  ## one bad reply against Flower's own strategies and ours, to docs/results/flower/faults.md
	OMP_NUM_THREADS=1 build/flower/bin/python benchmarks/flower_faults.py

flower-bench: build/flower/ready  ## costs beside Flower's own strategies, and parity with its engine, to docs/results/flower; ten minutes on two cores
	OMP_NUM_THREADS=1 build/flower/bin/python benchmarks/flower_cost.py
	OMP_NUM_THREADS=1 build/flower/bin/python benchmarks/flower_parity.py

matrix: .venv/ready  ## every attack against every defense on the digits; about seven minutes on two cores
	$(BIN)/python examples/matrix.py

torture: .venv/ready  ## kills, damage, hostile files, strangers' code, full disks, 10,000 rounds; half an hour on two cores
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow tests
	$(BIN)/python -m torture

audit: .venv/ready  ## known vulnerabilities of the pinned dependencies; asks PyPI
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --requirement .ci/requirements.txt --disable-pip

lock: constraints.txt  ## the hashes that CI checks
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet --disable-pip-version-check pip-tools
	grep -vE '^(#|torch==)' constraints.txt > build/lock/in.txt
	build/lock/bin/pip-compile --quiet --generate-hashes --no-header --no-annotate --strip-extras --allow-unsafe \
	  --no-emit-find-links --no-emit-index-url --no-emit-trusted-host -o build/lock/out.txt build/lock/in.txt
	(head -n 2 .ci/requirements.txt; cat build/lock/out.txt) > build/lock/all.txt && mv build/lock/all.txt .ci/requirements.txt

clean:
	rm -rf .venv build demo runs reproduced report .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Flower needs other versions than we do; ByzFL's rules need none of the plotting that it asks for.
build/others/ready:
	$(PYTHON) -m venv build/others
	build/others/bin/python -m pip install --quiet --disable-pip-version-check 'flwr[simulation]==1.42.0' torch==2.13.0 scipy
	build/others/bin/python -m pip install --quiet --disable-pip-version-check --no-deps byzfl==0.0.11
	touch $@

build/flower/ready: pyproject.toml
	$(PYTHON) -m venv build/flower
	build/flower/bin/python -m pip install --quiet --disable-pip-version-check -e '.[report]' \
	  'flwr[simulation]==1.42.0' torch==2.13.0 beartype hypothesis pytest pytest-xdist
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
