# make demo   install and draw a sheet of pictures
# make test   install and run the tests
# make lint   the checks that need no running code
# make bench-smoke   see that the benchmarks run; a minute
# make figures   measure every figure of README.md again
# make clean  remove .venv and caches
#
# The first run makes .venv and installs; later runs find it there. PYTHON=python3.12 picks
# another interpreter, VENV=dir another folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := pyproject.toml constraints.txt

# With the working folder on the path, `import kernels` would find our folder instead of the
# package of that name which other libraries look for.
export PYTHONSAFEPATH := 1

.PHONY: demo test lint format bench-smoke figures clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo-installed
	@$(BIN)/bootpig-rt demo

test: $(VENV)/.dev-installed
	@$(BIN)/pytest -m "not slow and not gpu and not trt"

lint: $(VENV)/.dev-installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench-smoke: $(VENV)/.dev-installed
	@$(BIN)/bootpig-rt bench --suite baselines --suite kernels --smoke --work bench

SUITES := baselines reference quality latency scale kernels builds

figures: $(VENV)/.dev-installed
	@$(BIN)/bootpig-rt fetch-data -o data
	@for suite in $(SUITES); do \
		$(BIN)/bootpig-rt bench --suite $$suite -o benchmarks/results/$$suite-cpu.json || exit 1; \
	done
	@$(BIN)/bootpig-rt evaluate --suite small --steps 12 -o bench/evaluation
	@cp bench/evaluation/report.json benchmarks/results/evaluation-small.json
	@$(BIN)/python -m bootpig_rt.benchmarks.readme
	@$(BIN)/bootpig-rt bench $(SUITES:%=--from benchmarks/results/%-cpu.json) --report bench/report

format: $(VENV)/.dev-installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(VENV)/.made:
	@.ci/make-venv "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.demo-installed: $(INPUTS) $(VENV)/.made
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[cpu]"
	@touch $@

# The tests cover every part that runs on a CPU. What they install is enough for the demo too.
$(VENV)/.dev-installed: $(INPUTS) $(VENV)/.made
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[torch,train,eval,background,cpu,export,kernels,tensorrt,sign,dev]"
	@touch $@ $(VENV)/.demo-installed

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis \
		.benchmarks .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
