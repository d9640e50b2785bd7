# Evaluation on the ImageNet validation set with ReaL (reassessed) labels, which are included in timm:
# mmgcvit test THIS_CONFIG CHECKPOINT
_base_ = './gcvit-tiny_32xb128_in1k.py'

test_evaluator = dict(real_labels='timm')
