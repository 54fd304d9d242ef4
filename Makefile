# `make verify` and `make test` need Python 3.11+, make and git; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
BIN := $(VENV)/bin

.PHONY: verify test oldest check bench mutants clean

verify: $(VENV)/installed ## judge the embedded decoders, in two processes; ARGS="--decoder transformers --profile smoke" for others
ifeq (,$(findstring --decoder,$(ARGS))$(findstring --verifier,$(ARGS))$(findstring --generations,$(ARGS)))
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest verify/ -n 2 --decoder dspark-classic $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest verify/ -n 2 $(ARGS)
else
	$(BIN)/python -m pytest verify/ $(ARGS)
endif

test: $(VENV)/installed ## the tests of this repository, in two processes; ARGS="-n 8" for more
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ -n 2 --dist worksteal $(ARGS)

oldest: ## the same with the oldest versions that pyproject.toml claims
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

check: $(VENV)/installed ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed ## speed of the embedded decoders against plain decoding and transformers; at most ten minutes; reports/local/bench
	$(BIN)/python -m verify.bench races $(ARGS)

mutants: $(VENV)/installed ## judge the judge: every planted bug and every control; hours; goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.run $(ARGS)

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e . --group test --group check --group bench
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest reports/local .mypy_cache .ruff_cache .pytest_cache
