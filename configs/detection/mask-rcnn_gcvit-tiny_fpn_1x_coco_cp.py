# Activation checkpointing: less memory, because blocks are recomputed in the backward pass.
_base_ = './mask-rcnn_gcvit-tiny_fpn_1x_coco.py'

model = dict(backbone=dict(with_cp=True))
