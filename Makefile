# Everything from nothing: `make demo` and `make test` install what they need first.
# PYTHON picks the interpreter of .venv; mmcv, once built, is kept outside the tree (MMGCVIT_WHEELS).
SHELL := bash
PYTHON ?= python3
export PYTHON
VENV := .venv
RUN := $(VENV)/bin/python

# Most of what the tests do is one thread's work: so many processes of one thread each (JOBS).
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile

DIGITS := data/digit_scenes
DEMO := work_dirs/demo
DEMO_CONFIG := configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py
DEMO_SEG := work_dirs/demo_seg
DEMO_SEG_CONFIG := configs/segmentation/gcvit-nano_fpn_digits-160x160.py
DEMO_CLS := work_dirs/demo_cls
DEMO_CLS_CONFIG := configs/classification/gcvit-nano_digits.py

# GC ViT-T as published, the authors' form for dense prediction, and others' backbones. BENCH: e.g. `--device cuda`.
BENCH ?=
W24 := gcvit-tiny,pad=window,window_size=24/24/24/24,global_query_reductions=3/2/1/0
DENSE := gcvit-tiny,pad=window gcvit-tiny $(W24) swin-t

.PHONY: help install digits demo demo-seg demo-cls bench test test-all test-openmmlab lint clean

help:
	@echo 'make demo            train a GC ViT Mask R-CNN on digit scenes, evaluate it, draw what it finds'
	@echo 'make demo-seg        the same with a segmentor'
	@echo 'make demo-cls        the same with a classifier of single digits'
	@echo 'make bench           time and memory beside other backbones (let nothing else run)'
	@echo 'make test            the tests'
	@echo 'make test-all        the tests, those marked slow too'
	@echo 'make test-openmmlab  the tests in a second environment with OpenMMLab'"'"'s own packages'
	@echo 'make install         .venv with the whole stack; the others do it first'
	@echo 'make lint            ruff'
	@echo 'make clean           remove what the demos made (data/digit_scenes, work_dirs/demo*)'

install:
	@tools/install.sh onedl $(VENV)

digits: install
	@[ -f $(DIGITS)/README.txt ] || $(RUN) tools/make_digit_scenes.py $(DIGITS)

demo: digits
	@rm -rf $(DEMO)
	$(RUN) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO)
	$(RUN) tools/test.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --work-dir $(DEMO)/test --show-dir $(DEMO)/pictures
	@echo
	@echo 'pictures that it was not trained on, truth left, prediction right; the first of $(DEMO)/pictures:'
	@ls $(DEMO)/pictures/*.jpg | head -n 5

demo-seg: digits
	@rm -rf $(DEMO_SEG)
	$(RUN) tools/train.py $(DEMO_SEG_CONFIG) --work-dir $(DEMO_SEG)
	$(RUN) tools/test.py $(DEMO_SEG_CONFIG) "$$(cat $(DEMO_SEG)/last_checkpoint)" --work-dir $(DEMO_SEG)/test --show-dir $(DEMO_SEG)/pictures
	@echo
	@echo 'pictures that it was not trained on, truth left, prediction right; the first of $(DEMO_SEG)/pictures:'
	@ls $(DEMO_SEG)/pictures/* | head -n 5

demo-cls: digits
	@rm -rf $(DEMO_CLS)
	$(RUN) tools/train.py $(DEMO_CLS_CONFIG) --work-dir $(DEMO_CLS)
	$(RUN) tools/test.py $(DEMO_CLS_CONFIG) "$$(cat $(DEMO_CLS)/last_checkpoint)" --work-dir $(DEMO_CLS)/test --out $(DEMO_CLS)/predictions.csv
	@echo
	@echo 'digits that it was not trained on, with the five most probable classes; the first of $(DEMO_CLS)/predictions.csv:'
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

lint: install
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(DIGITS) $(DEMO) $(DEMO_SEG) $(DEMO_CLS)
