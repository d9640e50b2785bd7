# Evaluation on ImageNet's validation pictures with the reassessed labels, which come with timm:
# tools/test.py this-file CHECKPOINT
_base_ = "./gcvit-tiny_32xb128_in1k.py"

test_evaluator = dict(real_labels="timm")
