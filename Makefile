# The commands of the course; `make help` lists them. GNU make 3.81 (macOS) is enough.
#
# A target is an executed notebook in build/<profile>/notebooks. It depends on its source, on its parameters
# (build/<profile>/parameters, rewritten only when profile or SOURCE change), on the whole library, and on the chapters
# whose results it reads. What was trained or prepared returns from its checkpoint, so that running again is cheap.

PROFILE ?= sample
SOURCE ?=
SEED ?=
PYTHON ?= python3
WORKERS ?= 2
ALL ?=
TORCH_INDEX ?=
LAB_OPTIONS ?=

# A user's words are data: never expanded by make, never read by a shell, handed over through the environment alone.
WORDS := PROFILE SOURCE SEED PYTHON WORKERS ALL TORCH_INDEX LAB_OPTIONS FASHION_BUILD
$(foreach name,$(WORDS),$(eval override $(name) := $$(value $(name))))
export $(WORDS)
MAKEOVERRIDES :=
PROFILES := sample $(notdir $(wildcard profiles/*))
ifneq ($(words $(PROFILE)) $(filter $(PROFILES),$(PROFILE)),1 $(PROFILE))
$(error PROFILE must be one of $(PROFILES); found "$(PROFILE)")
endif

BIN := .venv/bin
# A target cannot have spaces or these marks in its path: tools/guarded.py makes a link to such a folder, for inner makes.
MARKS := ' " $$ ` \ ; & | < > ( ) * ? [ ] ! % : = ~ { } \#
ODD := $(word 2,$(FASHION_BUILD)) $(filter -%,$(FASHION_BUILD)) $(foreach mark,$(MARKS),$(findstring $(mark),$(FASHION_BUILD)))
BUILD := $(if $(strip $(ODD)),.link,$(or $(FASHION_BUILD),build))
OUT := $(BUILD)/$(PROFILE)
RUN := $(BIN)/python -m
GUARDED := $(RUN) tools.guarded
ALONE := $(GUARDED) --alone $(PROFILE)
INNER := --no-print-directory -o .venv/.installed
CHAPTERS := 01_data_preparation 02_resnet152 02b_comparisons 03_guided_backprop 03b_methods 04_average_saliency 05_dcgan \
	06_summary 07_resolution 08_transfer
# Of the tests: these chapters run in JupyterLab, all others (or those that git sees changed) by nbval.
IN_LAB := 01_data_preparation 04_average_saliency
LIBRARY := $(wildcard fashionlib/*.* fashionlib/data/*.* benchmarks/results/*.json)
BOOK := tools/book.py _config.yml _toc.yml index.md introduction.md glossary.md this_build.md \
	$(wildcard _static/* vendor/*/* notebooks/pictures/*)
BENCHMARKS := $(filter-out benchmarks/measuring.py,$(wildcard benchmarks/*.py))
EXPERIMENTS := $(wildcard benchmarks/experiments/*.py)

export IN_LAB
export JUPYTER_PREFER_ENV_PATH := 1
.DELETE_ON_ERROR:
# A chapter takes every core, and two at once are many times slower, whatever MAKEFLAGS says. Not so the sample's small
# networks: two chapters of one thread each take two thirds of the time of one after the other.
ifeq ($(PROFILE),sample)
THREADS := OMP_NUM_THREADS=1
AT_ONCE := -j2
else
.NOTPARALLEL:
endif
.PHONY: help report rendered notebooks executed test tested lab student bench experiments seeds clean removed check

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PROFILE: $(PROFILES)   SOURCE: synthetic, kaggle-small, kaggle-full, a folder or a zip   SEED: a number"

# What takes long ends with make, and two makes in one profile wait for each other.
report: .venv/.installed ## run the chapters that changed and render the book [PROFILE=...] [SOURCE=...]
	@$(ALONE) $(MAKE) $(INNER) rendered
	@echo "The report: $${FASHION_BUILD:-build}/$(PROFILE)/html/index.html"

notebooks: .venv/.installed ## run the chapters that changed, without rendering [PROFILE=...] [SOURCE=...]
	@$(ALONE) $(MAKE) $(INNER) executed

rendered: executed
	@$(MAKE) $(INNER) $(OUT)/html/index.html

executed: check
	@$(THREADS) $(MAKE) $(INNER) $(AT_ONCE) $(CHAPTERS:%=$(OUT)/notebooks/%.ipynb)

# The tests get a copy of the sample's report (made first where it is not current) and leave the report alone. Half of
# their time is spent on one core (imports, kernels, the browser): two processes of one thread each use both.
IN_GIT = (git diff --name-only --diff-filter=d HEAD && git ls-files --others --exclude-standard) 2>/dev/null
CHANGED = $(if $(ALL),$(CHAPTERS:%=notebooks/%.ipynb),$(filter notebooks/%.ipynb,$(shell $(IN_GIT))))
BY_NBVAL = $(filter-out $(IN_LAB:%=notebooks/%.ipynb),$(CHANGED))
test: .venv/.installed ## ruff, pytest, nbval, the published book, JupyterLab; before a commit, or everything [ALL=1] [WORKERS=...]
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	@$(MAKE) $(INNER) report PROFILE=sample SOURCE= SEED=
	@$(GUARDED) $(MAKE) $(INNER) tested

tested:
	@build=$$(mktemp -d) && trap 'rm -rf "$$build"' EXIT && trap 'exit 130' INT TERM \
	&& $(GUARDED) --alone sample cp -Rp $(BUILD)/sample "$$build" && export FASHION_BUILD="$$build" \
	&& OMP_NUM_THREADS=1 $(RUN) pytest -n "$$WORKERS" --dist loadscope --no-loadscope-reorder --durations 15 \
	-m "not nightly$(if $(ALL),, and not slow)" --nbval-lax tests $(BY_NBVAL)

# LAB_OPTIONS: JupyterLab's own options; on a server: make lab LAB_OPTIONS="--no-browser --ServerApp.port=8890".
lab: .venv/.installed ## open the course in JupyterLab [LAB_OPTIONS=...]
	set -f; exec $(GUARDED) $(RUN) jupyterlab --LabApp.default_url=/lab/tree/notebooks \
	$(if $(filter 0,$(shell id -u)),--allow-root) $$LAB_OPTIONS

student: .venv/.installed ## write the notebooks without solutions, and the test that checks answers
	@$(RUN) tools.student

bench: .venv/.installed ## run every benchmark; results go to benchmarks/results
	@exec $(GUARDED) sh -ec '$(foreach file,$(BENCHMARKS),echo "== $(file)"; $(BIN)/python $(file);)'

experiments: .venv/.installed ## run the long comparisons, resumable; results go to benchmarks/results
	@exec $(GUARDED) sh -ec '$(foreach file,$(EXPERIMENTS),echo "== $(file)"; $(BIN)/python $(file);)'

seeds: .venv/.installed ## the chapters of sample with seeds 1 to 5, resumable; the result goes to benchmarks/results
	@exec $(GUARDED) $(BIN)/python benchmarks/experiments/seeds.py

clean: ## remove what was built for PROFILE
	@$(if $(wildcard $(BIN)/python),$(ALONE) )$(MAKE) $(INNER) removed

removed:
	rm -rf -- $(OUT)

# --- set-up ------------------------------------------------------------------------------------------------------------

# TORCH_INDEX: address of a package index with other builds of torch and torchvision (CPU only); both come from it.
.venv/.installed: pyproject.toml constraints.txt
	@"$$PYTHON" -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, found {v}: make PYTHON=python3.12 ...")'
	"$$PYTHON" -m venv .venv
	$(RUN) pip install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url "$$TORCH_INDEX") -e '.[test,bench]'
	@touch $@

# Looks at profile, parameter names and source before the first chapter runs: a mistake costs a second.
check: .venv/.installed
	@$(RUN) tools.check --profile "$$PROFILE" --source="$$SOURCE" --seed="$$SEED"

# --- chapters ----------------------------------------------------------------------------------------------------------

executed = $(patsubst %,$(OUT)/notebooks/%.ipynb,$(1))

$(call executed,$(CHAPTERS)): $(LIBRARY)
$(call executed,02_resnet152 07_resolution 08_transfer): $(call executed,01_data_preparation)
$(call executed,02b_comparisons 03_guided_backprop 05_dcgan): $(call executed,02_resnet152)
$(call executed,03b_methods 04_average_saliency): $(call executed,03_guided_backprop)
$(call executed,06_summary): $(call executed,02b_comparisons 03b_methods 04_average_saliency 05_dcgan)

# To a temporary name, renamed on success: papermill leaves a newer, broken output where a cell fails.
$(OUT)/notebooks/%.ipynb: notebooks/%.ipynb $(OUT)/parameters/%.yml
	@mkdir -p $(@D) && rm -f $(@D)/$*.failed.ipynb
	@echo "== chapter $*"
	@$(RUN) papermill -k python3 -f $(OUT)/parameters/$*.yml $(if $(or $(CI),$(filter sample,$(PROFILE))),--no-progress-bar) $< $(@D)/$*.part.ipynb \
	|| { mv $(@D)/$*.part.ipynb $(@D)/$*.failed.ipynb; echo "kept: $(@D)/$*.failed.ipynb" >&2; exit 1; }
	@mv $(@D)/$*.part.ipynb $@

# --- the book ----------------------------------------------------------------------------------------------------------

# Staged at the paths of _toc.yml, with the page that tells about this build; html/ is replaced only by a build without
# a warning.
$(OUT)/html/index.html: $(call executed,$(CHAPTERS)) $(BOOK)
	@$(RUN) tools.book --profile $(PROFILE)
	$(BIN)/python -c 'from jupyter_book.cli.main import main; main()' build -W -n --keep-going -q $(OUT)/book
	@rm -rf $(OUT)/html && mv $(OUT)/book/_build/html $(OUT)/html && touch $@
