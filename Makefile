# The commands of the course; `make help` lists them. GNU make 3.81 (macOS) is enough.
#
# A target is an executed notebook in build/<profile>/notebooks. It depends on its source, on its parameters
# (build/<profile>/parameters: rewritten only when profile or SOURCE change), on the library modules that it imports,
# and on the chapters whose results it reads. tests/test_make.py compares these lists with the notebooks' imports.

PROFILE ?= sample
SOURCE ?=
PYTHON ?= python3
WORKERS ?= 2
TORCH_INDEX ?=
LAB_OPTIONS ?=

BIN := .venv/bin
BUILD := $(or $(FASHION_BUILD),build)
OUT := $(BUILD)/$(PROFILE)
CHAPTERS := 01_data_preparation 02_resnet152 02b_comparisons 03_guided_backprop 03b_methods 04_average_saliency 05_dcgan 06_summary \
	07_resolution 08_transfer
PROFILES := sample $(notdir $(wildcard profiles/*))
EXECUTED := $(CHAPTERS:%=$(OUT)/notebooks/%.ipynb)
BENCHMARKS := $(filter-out benchmarks/measuring.py,$(wildcard benchmarks/*.py))
EXPERIMENTS := $(wildcard benchmarks/experiments/*.py)
KEPT := benchmarks/results/small-cpu.json benchmarks/results/small-224-cpu.json
BOOK := _config.yml _toc.yml index.md introduction.md glossary.md bibliography.md references.bib $(wildcard _static/* vendor/*/*)

export JUPYTER_PREFER_ENV_PATH := 1
$(if $(word 2,$(BUILD)),$(error FASHION_BUILD must be a path without spaces, found "$(BUILD)"))
.DELETE_ON_ERROR:
# A chapter takes every core, and two at once are many times slower, whatever MAKEFLAGS says. Not so the sample's small
# networks: two chapters of one thread each take two thirds of the time of one after the other.
ifeq ($(PROFILE),sample)
THREADS := OMP_NUM_THREADS=1
AT_ONCE := -j2
else
THREADS :=
AT_ONCE :=
.NOTPARALLEL:
endif
.PHONY: help report notebooks test lab student bench experiments clean check

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PROFILE=sample|small|small-224|full|best   SOURCE=synthetic|kaggle-small|kaggle-full|folder|zip"

report: notebooks ## run the chapters that changed and render the book [PROFILE=...] [SOURCE=...]
	@$(MAKE) --no-print-directory $(OUT)/html/index.html
	@echo "The report: $(OUT)/html/index.html"

notebooks: check ## run the chapters that changed, without rendering [PROFILE=...] [SOURCE=...]
	@$(THREADS) $(MAKE) --no-print-directory $(AT_ONCE) $(EXECUTED)

# Half of the tests' time is spent on one core (imports, kernels, the browser): two processes of one thread each use both.
test: .venv/.installed ## ruff, pytest, nbval on every notebook, the published book (in a temporary build folder) [WORKERS=...]
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@build=$$(mktemp -d) && trap 'rm -rf "$$build"' EXIT && trap 'exit 130' INT TERM && export FASHION_BUILD="$$build" \
	&& $(MAKE) --no-print-directory report PROFILE=sample SOURCE= FASHION_BUILD="$$build" \
	&& OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder --nbval-lax tests notebooks

# LAB_OPTIONS: JupyterLab's own options; on a server: make lab LAB_OPTIONS="--no-browser --ServerApp.port=8890".
lab: .venv/.installed ## open the course in JupyterLab [LAB_OPTIONS=...]
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_OPTIONS)

student: .venv/.installed ## write the notebooks without solutions, and the test that checks answers
	@$(BIN)/python -m fashionlib.student

bench: .venv/.installed ## run every benchmark; results go to benchmarks/results
	@$(if $(BENCHMARKS),,echo "no benchmark yet: a file benchmarks/<name>.py is one")
	@$(foreach file,$(BENCHMARKS),echo "== $(file)" && $(BIN)/python $(file) &&) true

experiments: .venv/.installed ## run the long comparisons, resumable; results go to benchmarks/results
	@$(if $(EXPERIMENTS),,echo "no experiment yet: a file benchmarks/experiments/<name>.py is one")
	@$(foreach file,$(EXPERIMENTS),echo "== $(file)" && $(BIN)/python $(file) &&) true

clean: ## remove what was built for PROFILE
	$(if $(filter $(PROFILE),$(PROFILES)),rm -rf '$(OUT)',$(error PROFILE must be one of $(PROFILES), found "$(PROFILE)"))

# --- set-up ------------------------------------------------------------------------------------------------------------

# TORCH_INDEX: address of a package index with other builds of torch and torchvision (CPU only); both come from it.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, found {v}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[test,bench]'
	@touch $@

# Looks at profile, parameter names and source before the first chapter runs: a mistake costs a second.
check: .venv/.installed
	@$(BIN)/python -m fashionlib.artifacts check --profile '$(PROFILE)' --source '$(SOURCE)'

# --- chapters ----------------------------------------------------------------------------------------------------------

DATA := runtime artifacts catalogue images
NETWORK := $(DATA) decoding convolutions training classifier
library = $(patsubst %,fashionlib/%.py,$(1))
executed = $(patsubst %,$(OUT)/notebooks/%.ipynb,$(1))

$(call executed,01_data_preparation): $(call library,$(DATA) sources decoding duplicates staging chunks preparation synthetic descriptions plots) fashionlib/drawings.txt
$(call executed,02_resnet152): $(call library,$(NETWORK) evaluation descriptions plots) $(call executed,01_data_preparation) \
	benchmarks/results/splits.json
$(call executed,02b_comparisons): $(call library,$(NETWORK) evaluation baselines descriptions plots) $(call executed,02_resnet152)
$(call executed,03_guided_backprop): $(call library,$(NETWORK) saliency faithfulness panels descriptions plots) $(call executed,02_resnet152)
$(call executed,03b_methods): $(call library,$(NETWORK) saliency faithfulness attribution synthetic descriptions plots) fashionlib/drawings.txt \
	$(call executed,03_guided_backprop)
$(call executed,04_average_saliency): $(call library,$(NETWORK) evaluation saliency faithfulness faces descriptions plots) $(call executed,03_guided_backprop)
$(call executed,05_dcgan): $(call library,$(NETWORK) adversarial generators dcgan judging panels descriptions plots) $(call executed,02_resnet152) \
	benchmarks/results/gan_recipes.json
$(call executed,06_summary): $(call library,runtime artifacts catalogue descriptions plots) $(call executed,02b_comparisons 03b_methods 04_average_saliency 05_dcgan) \
	benchmarks/results/ablation.json benchmarks/results/resolution.json benchmarks/results/transfer.json $(KEPT)
$(call executed,07_resolution): $(call library,$(NETWORK) evaluation baselines judging descriptions plots) $(call executed,01_data_preparation) \
	benchmarks/results/resolution.json
$(call executed,08_transfer): $(call library,$(NETWORK) baselines saliency faithfulness descriptions plots) $(call executed,01_data_preparation) \
	benchmarks/results/transfer.json

# To a temporary name, renamed on success: papermill leaves a newer, broken output where a cell fails.
$(OUT)/notebooks/%.ipynb: notebooks/%.ipynb $(OUT)/parameters/%.yml
	@mkdir -p $(@D) && rm -f $(@D)/$*.failed.ipynb
	@echo "== chapter $*"
	@$(BIN)/papermill -k python3 -f $(OUT)/parameters/$*.yml $(if $(or $(CI),$(filter sample,$(PROFILE))),--no-progress-bar) $< $(@D)/$*.part.ipynb \
	|| { mv $(@D)/$*.part.ipynb $(@D)/$*.failed.ipynb; echo "kept: $(@D)/$*.failed.ipynb" >&2; exit 1; }
	@mv $(@D)/$*.part.ipynb $@

# --- the book ----------------------------------------------------------------------------------------------------------

# Staged at the paths of _toc.yml, with the pages that tell about this build; html/ is replaced only by a build without
# a warning.
$(OUT)/html/index.html: $(EXECUTED) $(BOOK) $(call library,book descriptions plots) $(KEPT)
	@$(BIN)/python -m fashionlib.book --profile $(PROFILE)
	$(BIN)/jupyter-book build -W -n --keep-going -q $(OUT)/book
	@rm -rf $(OUT)/html && mv $(OUT)/book/_build/html $(OUT)/html && touch $@
