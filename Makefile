# make demo   the main job on the demo world, in an environment of its own
# make test   all default tests, in the same environment
# make docs   the documentation, build/docs/index.html
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO ?= demo
DATES ?= 2020-03-01/2020-03-31

.PHONY: demo test lint slow docs bench faults weights clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 has no venv module: install your system's python3-venv package" >&2; exit 1; }
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs,cluster,film,notebook]'
	@touch $@

demo: $(STAMP)
	$(PY) -m pipelines.fuse --catalog demo --dates $(DATES) --out $(DEMO)
	$(PY) -m pipelines.evaluate $(DEMO) --method stfgan --method progress --method delta --method linear --picture $(DEMO)/picture.png

test: $(STAMP)
	$(PY) -m pytest -n auto --dist loadfile

slow: $(STAMP)
	$(PY) -m pytest -m slow --timeout 1800

lint: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

docs: $(STAMP)
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs

bench: $(STAMP)
	$(PY) -m benchmarks.engine
	$(PY) -m benchmarks.plans
	$(PY) -m benchmarks.memory --size 512 --days 31
	$(PY) -m benchmarks.gpu

# What may never happen, counted: benchmarks/reliability.md. FAULTS="--rows 9 --kills 20" for some of it.
FAULTS ?=
faults: $(STAMP)
	$(PY) -m benchmarks.faults $(FAULTS)

# The shipped weights: three to four hours on two cores.
RUNS := 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
RECIPE := --half --gan none --batch 4 --patch 96 --margin 16 --samples 640 --region 192 --optimiser adam \
  --decay cosine --shortest 4 --longest 64 --subsets
weights: $(STAMP)
	benchmarks/weights.sh build/corpus $(PY)
	$(PY) -m pipelines.train $(foreach n,$(RUNS),--cube build/corpus/run-$(n)) --out build/weights/first $(RECIPE) \
	  --width 16 --steps 4500 --learning-rate 1e-3 --seed 1
	$(PY) -m pipelines.train $(foreach n,$(RUNS),--cube build/corpus/run-$(n)) --out build/weights/second $(RECIPE) \
	  --from build/weights/first/stfgan.safetensors --steps 1800 --learning-rate 7e-4 --seed 2
	$(PY) -m pipelines.train $(foreach n,$(RUNS),--cube build/corpus/run-$(n)) --out build/weights/third $(RECIPE) \
	  --from build/weights/second/stfgan.safetensors --steps 2600 --learning-rate 7e-4 --seed 3
	$(PY) -m pipelines.train $(foreach n,$(RUNS),--cube build/corpus/run-$(n)) --out build/weights/fourth $(RECIPE) \
	  --from build/weights/third/stfgan.safetensors --steps 2400 --learning-rate 7e-4 --trust 0.5 --seed 4
	cp build/weights/fourth/stfgan.safetensors build/weights/fourth/stfgan.json stfgan_xr/weights/

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
