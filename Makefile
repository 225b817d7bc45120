# make demo   install and draw a sheet of pictures
# make test   install and run the tests
# make test-slow   the tests that are left out there: minutes each
# make test-triton the model for NVIDIA Triton in the server that PyTriton ships; installs it in .venv-triton
# make coverage    the tests, and how many branches of the packages they took
# make jumps       how far a reader must jump to follow one picture
# make screenshots   the pictures of the page in docs/assets; needs Chromium (apt-get install chromium)
# make pictures   docs/demo.png and in docs/assets steps.png, follow-a-map.png, lora.png, xl-layout.png and tiles.png
#                 anew, with the pair inside the package; minutes.
# make docs   the documentation as a site, in site/; open site/index.html
# make fuzz   read a hundred thousand damaged pictures, files and requests; minutes. Interrupted, it goes
#             on where it was. INPUTS=1000000 reads more, SEED=20 reads others
# make mutants     how many small faults put into the code the tests see; hours. MODULES="solver store"
# make lint   the checks that need no running code
# make bench-smoke   see that the benchmarks run; minutes
# make figures   measure every figure of README.md again; hours, on an idle machine. Interrupted, it
#                goes on where it was. ROUNDS=10 measures less; SMOKE=1 only shows that all of it runs
# make report    pages, plots and marked lines of README.md and docs from what was measured last
# make gpu       all that is checked and measured on a GPU, in a quarter of an hour. SMOKE=1 runs the same
#                commands small, on a CPU
# make road      from a Stable Diffusion folder to a picture over HTTP, every command, at small size; ten
#                minutes. Interrupted, it goes on where it was
# make ship   put a trained pair and its student into the package, with graphs, card and logs; minutes.
#             PAIR=runs/recipe-128/pair/result STUDENT=runs/recipe-128/distill/result
#             SET=image_guidance_scale=3 changes what the pair draws with; CARD=1 writes its card anew
# make ship-control  put a control for the pair into the package: CONTROL=runs/control/result/controlnet_depth
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

.PHONY: demo docs test test-slow test-triton coverage jumps screenshots pictures fuzz mutants lint format bench-smoke figures report smoke-report gpu road ship ship-control clean
.NOTPARALLEL:
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo-installed
	@$(BIN)/bootpig-rt demo

# Every worker of the tests has one thread; they share what is expensive to make.
WORKERS ?= logical
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal
QUICK := -m "not slow and not gpu and not trt"

test: $(VENV)/.dev-installed
	@$(PYTEST) $(QUICK)

test-slow: $(VENV)/.dev-installed
	@$(PYTEST) -m "slow and not gpu and not trt"

test-triton: $(VENV)/.dev-installed $(VENV)-triton/.installed
	@BOOTPIG_RT_TRITON=$(VENV)-triton $(PYTEST) -n 0 -m slow tests/serving/test_triton_server.py

coverage: $(VENV)/.dev-installed
	@$(PYTEST) $(QUICK) --cov --cov-report=term:skip-covered --cov-report=html:.coverage-html

jumps: $(VENV)/.dev-installed
	@$(BIN)/python tests/tools/count_jumps.py

screenshots: $(VENV)/.dev-installed
	@$(BIN)/python tests/tools/screenshots.py

pictures: $(VENV)/.dev-installed
	@PYTHONPATH=. $(BIN)/python tests/tools/pictures.py

INPUTS ?= 100000
SEED ?= 19

fuzz: $(VENV)/.dev-installed
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED)

mutants: $(VENV)/.dev-installed
	@$(PIP) install --quiet --constraint constraints.txt "mutmut>=3.8,<4"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/tools/mutants.py $(MODULES)

docs: $(VENV)/.docs-installed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

lint: $(VENV)/.dev-installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench-smoke: $(VENV)/.dev-installed
	@$(BIN)/bootpig-rt bench --suite baselines --suite kernels --smoke --work bench

# What `make figures` has measured it notes in STAMPS: interrupted, it goes on from there, and when all
# is done it forgets. SMOKE=1 walks the same way with small numbers that mean nothing, into bench/smoke.
# Its training data lie apart from those of the recipe in the README, which are others.
ROUNDS ?=
SMOKE ?=
SUITES := baselines full-size full-size-512 shares reference quality inpaint latency kernels builds serving soak
ifeq ($(SMOKE),)
RESULTS := benchmarks/results
STAMPS := bench/figures
BENCH_FLAGS := $(ROUNDS:%=--rounds %)
EVALUATION := small
else
RESULTS := bench/smoke/results
STAMPS := bench/smoke/figures
BENCH_FLAGS := --smoke
EVALUATION := tiny
endif
PARTS := $(SUITES:%=suite-%) golden evaluation

figures: $(PARTS:%=$(STAMPS)/%)
	@$(MAKE) --no-print-directory $(if $(SMOKE),smoke-report,report)
	@rm -rf $(STAMPS)

$(STAMPS)/data: | $(VENV)/.dev-installed
	@mkdir -p $(STAMPS) $(RESULTS) bench
	@$(BIN)/bootpig-rt fetch-data -o data
	@touch $@

$(STAMPS)/suite-%: $(STAMPS)/data
	@$(BIN)/bootpig-rt bench --suite $* $(BENCH_FLAGS) -o $(RESULTS)/$*-cpu.json
	@touch $@

$(STAMPS)/golden: $(STAMPS)/data
	@$(BIN)/bootpig-rt verify-golden tests/golden/data --json > bench/golden.jsonl
	@cp bench/golden.jsonl $(RESULTS)/golden-cpu.jsonl
	@touch $@

$(STAMPS)/evaluation: $(STAMPS)/data
	@$(BIN)/bootpig-rt evaluate --suite $(EVALUATION) --steps 12 -o bench/evaluation-$(EVALUATION)
	@cp bench/evaluation-$(EVALUATION)/report.json $(RESULTS)/evaluation-small.json
	@touch $@

# Of what was measured last: also where only some suites were.
report: $(VENV)/.dev-installed
	@$(BIN)/python -m bootpig_rt.benchmarks.figures

smoke-report:
	@$(BIN)/bootpig-rt bench --report bench/smoke/pages $(SUITES:%=--from $(RESULTS)/%-cpu.json)

gpu: $(VENV)/.dev-installed
	@$(BIN)/python tests/tools/gpu_checks.py -o $(if $(SMOKE),bench/smoke/gpu --smoke,bench/gpu)

# The drawings of `fetch-data` are judged on where they are there; plain shapes stand in otherwise.
road: $(VENV)/.dev-installed
	@$(BIN)/python -m bootpig_rt.training.road -o bench/road

PAIR ?= runs/recipe-128/pair/result
STUDENT ?= runs/recipe-128/distill/result

ship: $(VENV)/.dev-installed
	@$(BIN)/python tests/tools/ship.py --pair $(PAIR) --student $(STUDENT) $(SET:%=--set %) $(CARD:%=--card)

CONTROL ?= runs/control/result/controlnet_depth

ship-control: $(VENV)/.dev-installed
	@$(BIN)/python tests/tools/ship_control.py $(CONTROL)

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
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[torch,train,eval,import,bootstrap-ray,background,cpu,openvino,export,int8,kernels,tensorrt,sign,bench,serve,otel,provenance,safety,ray,deploy,dev]"
	@touch $@ $(VENV)/.demo-installed

# The site is made from the sources; the runtime's own packages are enough.
$(VENV)/.docs-installed: $(INPUTS) $(VENV)/.made
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@

# PyTriton is made for numpy 1, so it gets a folder of its own.
$(VENV)-triton/.installed: $(INPUTS)
	@$(PYTHON) -m venv $(VENV)-triton
	@$(VENV)-triton/bin/python -m pip install --quiet "nvidia-pytriton>=0.7,<1" --editable ".[cpu]"
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-triton site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis \
		.benchmarks .coverage .coverage-html .fuzz .mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
