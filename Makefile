# `make demo` and `make test` work on a fresh checkout: they install what they need first.
# PYTHON is the interpreter that .venv is created with (default: python3); the built mmcv is cached outside the tree (MMGCVIT_WHEELS).
# MMCV_OPS=compiled builds mmcv's operators; CPU=1 takes torch's CPU build. See tools/install.sh.
SHELL := bash
export PYTHON MMCV_OPS CPU
VENV := .venv
RUN := $(VENV)/bin/python

# Most tests use one thread only, so they run in JOBS processes of one thread each.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile

# Material for MkDocs prints a notice about MkDocs 2.0 unless this variable is set.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs

DIGITS := data/digit_scenes
DEMO := work_dirs/demo
DEMO_CONFIG := configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py
DEMO_SEG := work_dirs/demo_seg
DEMO_SEG_CONFIG := configs/segmentation/gcvit-nano_fpn_digits-160x160.py
DEMO_CLS := work_dirs/demo_cls
DEMO_CLS_CONFIG := configs/classification/gcvit-nano_digits.py

# GC ViT-T as published and with the authors' windows for dense prediction, and other backbones to compare with.
# BENCH holds further arguments, e.g. `--device cuda`.
BENCH ?=
W24 := gcvit-tiny,pad=window,window_size=24/24/24/24,global_query_reductions=3/2/1/0
DENSE := gcvit-tiny,pad=window gcvit-tiny $(W24) swin-t

.PHONY: help install lock digits demo demo-seg demo-cls bench test test-all test-openmmlab coverage fuzz soak docs docs-serve lint format clean

help:
	@echo 'make demo            train a GC ViT Mask R-CNN on digit scenes, evaluate it, draw its predictions'
	@echo 'make demo-seg        the same for segmentation'
	@echo 'make demo-cls        the same for classification of single digits'
	@echo 'make digits          generate the digit scenes that the demos train on (data/digit_scenes)'
	@echo 'make bench           measure time and memory against other backbones (on an otherwise idle machine)'
	@echo 'make test            run the tests, except those marked slow'
	@echo 'make test-all        run all tests'
	@echo 'make test-openmmlab  run all tests in a second environment with OpenMMLab'"'"'s own packages'
	@echo 'make coverage        run the tests of `make test` and print the coverage of each file'
	@echo 'make fuzz            read mutated checkpoints for ten minutes (FUZZ_SECONDS=...)'
	@echo 'make docs            build the documentation site into site/; warnings are errors'
	@echo 'make docs-serve      serve the documentation at http://127.0.0.1:8000 and build changed pages again'
	@echo 'make lint            check with ruff (rules and formatting), mypy and hadolint'
	@echo 'make soak            watch the memory of runs on random sizes for 2 x 15 minutes (SOAK_SECONDS=...)'
	@echo 'make format          apply ruff'"'"'s fixes and formatting'
	@echo 'make install         create .venv with the whole stack; the other targets do this first (MMCV_OPS=compiled, CPU=1: see docs/install.md)'
	@echo 'make lock            resolve the newest versions that the extras allow into requirements/*.txt, with hashes'
	@echo 'make clean           remove the output of the demos (data/digit_scenes, work_dirs/demo*)'
	@echo 'make help            this list'

install:
	@tools/install.sh onedl $(VENV)

# Exact versions with hashes for every supported Python; opencv-python-headless takes the place of opencv-python.
LOCK := $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --build-constraints requirements/openmmlab.in --no-emit-package opencv-python
lock: install
	$(LOCK) pyproject.toml requirements/onedl.in -o requirements/onedl.txt \
		$(addprefix --extra ,onedl digits report test dev docs mim export app explain)
	$(LOCK) pyproject.toml requirements/openmmlab.in -o requirements/openmmlab.txt \
		$(addprefix --extra ,openmmlab digits report test)

digits: install
	@[ -f $(DIGITS)/README.txt ] || $(RUN) tools/make_digit_scenes.py $(DIGITS)

demo: digits
	@rm -rf $(DEMO)
	$(RUN) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO)
	$(RUN) tools/test.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --work-dir $(DEMO)/test --show-dir $(DEMO)/images
	@echo
	@echo 'Validation images, ground truth left, prediction right; the first of $(DEMO)/images:'
	@ls $(DEMO)/images/*.jpg | head -n 5

demo-seg: digits
	@rm -rf $(DEMO_SEG)
	$(RUN) tools/train.py $(DEMO_SEG_CONFIG) --work-dir $(DEMO_SEG)
	$(RUN) tools/test.py $(DEMO_SEG_CONFIG) "$$(cat $(DEMO_SEG)/last_checkpoint)" --work-dir $(DEMO_SEG)/test --show-dir $(DEMO_SEG)/images
	@echo
	@echo 'Validation images, ground truth left, prediction right; the first of $(DEMO_SEG)/images:'
	@ls $(DEMO_SEG)/images/* | head -n 5

demo-cls: digits
	@rm -rf $(DEMO_CLS)
	$(RUN) tools/train.py $(DEMO_CLS_CONFIG) --work-dir $(DEMO_CLS)
	$(RUN) tools/test.py $(DEMO_CLS_CONFIG) "$$(cat $(DEMO_CLS)/last_checkpoint)" --work-dir $(DEMO_CLS)/test --out $(DEMO_CLS)/predictions.csv
	@echo
	@echo 'Validation digits with their five most probable classes; the first of $(DEMO_CLS)/predictions.csv:'
	@head -n 6 $(DEMO_CLS)/predictions.csv

bench: install
	$(RUN) tools/benchmark.py --models $(DENSE) --shapes 800x1344 --isolate --rounds 7 --out work_dirs/bench/forward.json $(BENCH)
	$(RUN) tools/benchmark.py --models $(DENSE) --modes train --shapes 800x1344 --isolate --rounds 3 --out work_dirs/bench/train.json $(BENCH)
	$(RUN) tools/benchmark.py --models gcvit-tiny,window_size=8 swin-t --modes forward train --shapes 512x512 --rounds 9 --out work_dirs/bench/crops.json $(BENCH)
	$(RUN) tools/benchmark.py --models gcvit-tiny timm-gcvit-tiny --shapes 224x224 --batch 4 --rounds 15 --out work_dirs/bench/classifier.json $(BENCH)
	$(RUN) tools/benchmark.py --models gcvit-tiny --shapes 224x224 448x448 896x896 1792x1792 --isolate --rounds 7 --out work_dirs/bench/pixels.json $(BENCH)

test: install
	$(PYTEST) -m 'not slow'

test-all: install
	$(PYTEST)

test-openmmlab:
	@tools/install.sh openmmlab .venv-openmmlab
	$(subst $(VENV),.venv-openmmlab,$(PYTEST))

coverage: install
	$(PYTEST) -m 'not slow' --cov --cov-report term:skip-covered

fuzz: install
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) OMP_NUM_THREADS=1 $(RUN) -m pytest -s tests/checkpoint/test_fuzzed_files.py

soak: install
	SOAK_SECONDS=$(or $(SOAK_SECONDS),900) OMP_NUM_THREADS=1 $(RUN) -m pytest -s tests/backbone/test_soak.py

docs: install
	$(MKDOCS) build --strict

docs-serve: install
	$(MKDOCS) serve

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint Dockerfile

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(DIGITS) $(DEMO) $(DEMO_SEG) $(DEMO_CLS)
