# Evaluation on ImageNet-V2, whose class folders are named 0 to 999: mmgcvit test THIS_CONFIG CHECKPOINT
_base_ = './gcvit-tiny_32xb128_in1k.py'

test_dataloader = dict(dataset=dict(data_root='data/imagenetv2-matched-frequency-format-val/', split='', classes=1000))
